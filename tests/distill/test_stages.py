"""What each stage trains, and on which loss: definitions written out document by document."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from distill.data import Batch, Encoder, Stream
from distill.recipe.settings import StageConfig, StudentConfig
from distill.students.convert import assembled, new_student
from distill.students.hybrid import HybridForCausalLM
from distill.training.stages import Alignment, Distillation, loss_in, mean_kl, real_tokens, trainable_in
from distill.training.train import train
from suites.miniature.stream import Mixture, make_document
from suites.miniature.world import make_world

MakeHybrid = Callable[..., HybridForCausalLM]
MIXTURE = Mixture(chat={"recall": 1.0, "facts": 1.0}, plain={"copy": 1.0}, plain_share=0.3)
STAGE = StageConfig(name="s", kind="3b", data="x", steps=2, rows=3, length=96, lr=0.01, muon_lr=0.01)
STUDENT = StudentConfig(chunk_size=4, sliding_window=6, attention_sinks=2)


@pytest.fixture
def stream(tokenizer: PreTrainedTokenizerBase) -> Stream:
    encoder, world = Encoder(tokenizer), make_world()
    return Stream(lambda n: encoder.document(make_document(world, MIXTURE, 7, n, frozenset())), 3, 96, 0.25, 0)


@pytest.fixture
def batch(stream: Stream) -> Batch:
    return stream.batch(0)


def separate(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Ids and weights of each document of a batch."""
    found = []
    for ids, positions, weights in zip(batch.input_ids, batch.position_ids, batch.weights, strict=True):
        starts = (positions == 0).nonzero()[:, 0].tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if ids[start] != 0:
                found.append((ids[start:end], weights[start:end]))
    assert len(found) > 5
    return found


@torch.no_grad()
def end_to_end(teacher: Qwen3ForCausalLM, student: nn.Module, batch: Batch, stage: StageConfig) -> float:
    """The loss of stages 3, each document by itself, with torch's own KL and cross-entropy."""
    total = weight_sum = 0.0
    for ids, weights in separate(batch):
        z_t, z_s = teacher(ids[None]).logits[0, :-1], student(ids[None]).logits[0, :-1]
        if stage.top_k:
            z_t = z_t.masked_fill(z_t < z_t.topk(stage.top_k).values[:, -1:], -torch.inf)
        log_q = (z_s / stage.temperature).log_softmax(-1)
        kl = F.kl_div(log_q, (z_t / stage.temperature).softmax(-1), reduction="none").sum(-1) * stage.temperature**2
        ce = F.cross_entropy(z_s, ids[1:], reduction="none")
        share = 1.0 if stage.objective == "sft" or stage.kind == "pretrain" else stage.ce_weight
        total += (((1 - share) * kl + share * ce) * weights[1:]).sum().item()
        weight_sum += weights.sum().item()
    return total / weight_sum


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"objective": "sft"},
        {"kind": "3a", "temperature": 2.0, "top_k": 5, "ce_weight": 0.2},
        {"kind": "pretrain"},
    ],
)
def test_end_to_end_losses_are_means_over_the_valid_tokens_of_all_documents(
    change: dict[str, object], make_hybrid: MakeHybrid, teacher: Qwen3ForCausalLM, batch: Batch
) -> None:
    student = make_hybrid((1,)).double()
    exact = Qwen3ForCausalLM(teacher.config).double().eval()
    exact.load_state_dict(teacher.state_dict())
    stage = dataclasses.replace(STAGE, **change)
    trained = exact if stage.kind == "pretrain" else student
    found = loss_in(stage, exact, trained).value(batch)
    assert found == pytest.approx(end_to_end(exact, trained, batch, stage), rel=1e-6)


def test_a_step_is_the_sum_of_its_rows(make_hybrid: MakeHybrid, teacher: Qwen3ForCausalLM, batch: Batch) -> None:
    """Accumulation divides by the weight of the whole step: rows with few valid tokens count for few."""
    student = make_hybrid((1,))
    for loss in (Distillation(teacher, student), Alignment(teacher, [make_hybrid(())], "l2norm")):
        given: list[Tensor] = []
        for row in range(3):
            loss.terms(batch.rows(row, row + 1), given.append)
        weights = [loss.weight(batch.rows(row, row + 1)) for row in range(3)]
        assert sum(weights) == pytest.approx(loss.weight(batch)) and len(set(weights)) > 1
        assert sum(term.item() for term in given) / sum(weights) == pytest.approx(loss.value(batch), rel=1e-5)
        assert loss.value(batch, 2) == pytest.approx(loss.value(batch), rel=1e-5)
        assert [len(part.input_ids) for part in batch.parts(2)] == [2, 1]


def test_no_divergence_from_oneself(teacher: Qwen3ForCausalLM, make_hybrid: MakeHybrid, batch: Batch) -> None:
    assert Distillation(teacher, teacher).value(batch) == pytest.approx(0.0, abs=1e-6)
    student = make_hybrid((1,))
    there, back = Distillation(teacher, student).value(batch), Distillation(student, teacher).value(batch)
    assert there > 0.1 and abs(there - back) > 1e-3


def test_mean_kl_is_over_all_tokens_of_all_batches(
    teacher: Qwen3ForCausalLM, make_hybrid: MakeHybrid, batch: Batch
) -> None:
    student, loss = make_hybrid((1,)), Distillation(teacher, make_hybrid((1,)))
    parts = [batch.rows(0, 1), batch.rows(1, 3)]
    assert mean_kl(teacher, student, parts) == pytest.approx(Distillation(teacher, student).value(batch), rel=1e-5)
    assert loss.weight(parts[0]) != loss.weight(parts[1])


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2norm": lambda y, t: (y - t).square().sum(-1).sqrt() / 32**0.5,
    "mse": lambda y, t: ((y - t) ** 2).sum(-1) / 32,
    "nmse": lambda y, t: ((y - t) ** 2).sum(-1) / (t**2).sum(-1),
}


@pytest.mark.parametrize(
    ("alignment", "mixer"), [("l2norm", "kda"), ("mse", "swa"), ("nmse", ("mamba2", "swa", "kda"))]
)
@torch.no_grad()
def test_alignment_feeds_every_layer_with_the_teachers_input(
    alignment: str, mixer: str | tuple[str, ...], teacher: Qwen3ForCausalLM, batch: Batch
) -> None:
    student = new_student(teacher, 3, dataclasses.replace(STUDENT, mixer=mixer))
    total = count = 0.0
    for ids, _ in separate(batch):
        states = teacher(ids[None], output_hidden_states=True).hidden_states
        rotations = teacher.model.rotary_emb(states[0], torch.arange(len(ids))[None])
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
        for number, layer in enumerate(teacher.model.layers):
            normed = layer.input_layernorm(states[number])
            wanted, _ = layer.self_attn(hidden_states=normed, position_embeddings=rotations, attention_mask=mask)
            made, _ = student.model.layers[number].mixer(normed, position_embeddings=rotations)
            total += DISTANCES[alignment](made, wanted).sum().item()
        count += len(ids)
    stage = dataclasses.replace(STAGE, kind="2", alignment=alignment)
    assert loss_in(stage, teacher, student).value(batch) == pytest.approx(total / count, rel=1e-4)


def test_every_token_of_a_document_is_aligned_and_no_padding(batch: Batch) -> None:
    unweighted = dataclasses.replace(batch, weights=(batch.weights == 1.0).float())
    for given in (batch, unweighted):
        assert torch.equal(real_tokens(given), batch.input_ids != 0)
    assert real_tokens(batch).sum() == batch.tokens < batch.input_ids.numel()


def test_a_layer_is_let_go_before_the_next_is_run(
    teacher: Qwen3ForCausalLM, make_hybrid: MakeHybrid, batch: Batch
) -> None:
    students = [make_hybrid((1,)), make_hybrid(())]
    seen: list[int] = []

    def give(term: Tensor) -> None:
        assert not any(
            p.grad is not None for layer in students[1].model.layers[len(seen) // 2 + 1 :] for p in layer.parameters()
        )
        term.backward()
        seen.append(1)

    Alignment(teacher, students, "l2norm").terms(batch, give)
    assert len(seen) == 2 + 3
    mixers = [layer.mixer for layer in students[1].model.layers]
    assert all(parameter.grad is not None for mixer in mixers for parameter in mixer.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


EXPECTED: dict[str, Callable[[str], bool]] = {
    "1": lambda name: ".mixer.q_proj" in name or ".mixer.k_proj" in name,
    "2": lambda name: ".mixer." in name,
    "3a": lambda name: "self_attn" not in name and "embed" not in name and "lm_head" not in name,
    "3b": lambda name: "self_attn" not in name and "embed" not in name and "lm_head" not in name,
    "3": lambda name: "self_attn" not in name and "embed" not in name and "lm_head" not in name,
}


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_a_stage_moves_its_own_parameters_and_no_others(
    kind: str, teacher: Qwen3ForCausalLM, stream: Stream, tmp_path: Path
) -> None:
    student = new_student(teacher, 3, STUDENT)
    if kind.startswith("3"):
        student = assembled(teacher, student, (1,))
    before = {name: value.clone() for name, value in student.named_parameters()}
    teacher_before = {name: value.clone() for name, value in teacher.named_parameters()}
    stage = dataclasses.replace(STAGE, kind=kind)
    train(stage, student, trainable_in(stage), loss_in(stage, teacher, student), stream, tmp_path)
    for name, value in student.named_parameters():
        assert torch.equal(value, before[name]) != EXPECTED[kind](name), name
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.named_parameters())


def test_what_is_frozen_can_be_said(teacher: Qwen3ForCausalLM) -> None:
    student = assembled(teacher, new_student(teacher, 3, STUDENT), (1,))
    trained = trainable_in(dataclasses.replace(STAGE, freeze=("mlp", "norms", "qk")))
    names = {name for name, _ in student.named_parameters() if trained(name)}
    assert "model.layers.1.self_attn.q_proj.weight" in names and "model.embed_tokens.weight" in names
    assert not any("mlp" in name or ".mixer.k_proj" in name or "layernorm" in name for name in names)
    assert all(map(trainable_in(dataclasses.replace(STAGE, freeze=())), dict(student.named_parameters())))


def test_students_aligned_together_end_as_each_alone(teacher: Qwen3ForCausalLM, stream: Stream, tmp_path: Path) -> None:
    students = {name: new_student(teacher, 3, dataclasses.replace(STUDENT, mixer=name)) for name in ("kda", "mamba2")}
    stage = dataclasses.replace(STAGE, kind="2", steps=4, clip=0.05)
    alone = copy.deepcopy(students)
    for name, student in alone.items():
        loss = loss_in(stage, teacher, student)
        before = loss.value(stream.batch(0))
        train(stage, student, trainable_in(stage), loss, stream, tmp_path / name)
        assert loss.value(stream.batch(0)) < before
    together = nn.ModuleDict(students)
    train(stage, together, trainable_in(stage), loss_in(stage, teacher, together), stream, tmp_path / "both")
    for name, student in alone.items():
        for (key, wanted), found in zip(student.named_parameters(), students[name].parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6, msg=f"{name}: {key}")
