"""What each stage trains, on which loss, and where the student begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from distill.data import Batch, Encoder, Tokens, pack
from distill.recipe import StageConfig, StudentConfig
from distill.stages import (
    alignment_loss,
    assembled,
    distillation_loss,
    forward_kl,
    loss_in,
    new_student,
    next_token_loss,
    trainable_in,
)
from distill.students.hybrid import HybridForCausalLM
from distill.train import Stream, train
from suites.miniature.stream import Mixture, make_document
from suites.miniature.world import make_world

MIXTURE = Mixture(chat={"recall": 1.0, "facts": 1.0}, plain={"copy": 1.0}, plain_share=0.3)


@pytest.fixture
def fetch(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], Tokens]:
    encoder, world = Encoder(tokenizer), make_world()
    return lambda index: encoder.document(make_document(world, MIXTURE, 7, index, frozenset()))


@pytest.fixture
def batch(fetch: Callable[[int], Tokens]) -> Batch:
    return pack(fetch, 0, rows=3, length=96, prompt_weight=0.25, pad_id=0)


def separate(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and weights of each document of a batch."""
    found = []
    for ids, positions, weights in zip(batch.input_ids, batch.position_ids, batch.weights, strict=True):
        starts = (positions == 0).nonzero()[:, 0].tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if ids[start] != 0:
                found.append((ids[start:end], weights[start:end]))
    return found


@torch.no_grad()
def test_kl_is_its_definition_in_float64(
    make_hybrid: Callable[..., HybridForCausalLM], teacher: Qwen3ForCausalLM, batch: Batch
) -> None:
    student = make_hybrid((1,)).double()
    exact = Qwen3ForCausalLM(teacher.config).double().eval()
    exact.load_state_dict(teacher.state_dict())
    total = weight_sum = 0.0
    for ids, weights in separate(batch):
        p = exact(ids[None]).logits[0].softmax(-1)
        q = student(ids[None]).logits[0].softmax(-1)
        for t in range(1, len(ids)):
            kl = sum(p[t - 1, v].item() * (p[t - 1, v].log() - q[t - 1, v].log()).item() for v in range(p.shape[1]))
            total += weights[t].item() * kl
            weight_sum += weights[t].item()
        if weight_sum > 20:
            break
    used = len(separate(batch))
    assert used > 5 and weight_sum > 20
    short = Batch(ids[None], torch.arange(len(ids))[None], weights[None], 0, len(ids), 0)
    last = sum(
        weights[t].item() * F.kl_div(q[t - 1].log(), p[t - 1], reduction="sum").item() for t in range(1, len(ids))
    )
    found = distillation_loss(exact, student, short).item()
    assert found == pytest.approx(last / weights.sum().item(), rel=1e-9)
    logits_p, logits_q = torch.randn(4, 7).double(), torch.randn(4, 7).double()
    w = torch.tensor([1.0, 0.5, 0.0, 2.0]).double()
    by_hand = sum(
        w[n] * (logits_p[n].softmax(0) * (logits_p[n].softmax(0) / logits_q[n].softmax(0)).log()).sum()
        for n in range(4)
    )
    torch.testing.assert_close(forward_kl(logits_p, logits_q, w), by_hand / w.sum(), rtol=1e-12, atol=0)


@torch.no_grad()
def test_packed_losses_are_means_over_the_documents(
    make_hybrid: Callable[..., HybridForCausalLM], teacher: Qwen3ForCausalLM, batch: Batch
) -> None:
    student = make_hybrid((1,))
    kl = ce = total = 0.0
    for ids, weights in separate(batch):
        p = teacher(ids[None]).logits[0, :-1].log_softmax(-1)
        q = student(ids[None]).logits[0, :-1].log_softmax(-1)
        kl += ((p.exp() * (p - q)).sum(-1) * weights[1:]).sum().item()
        ce += -(p.gather(1, ids[1:, None])[:, 0] * weights[1:]).sum().item()
        total += weights[1:].sum().item()
    assert distillation_loss(teacher, student, batch).item() == pytest.approx(kl / total, rel=1e-4)
    assert next_token_loss(teacher, batch).item() == pytest.approx(ce / total, rel=1e-4)


@torch.no_grad()
def test_no_divergence_from_oneself(teacher: Qwen3ForCausalLM, batch: Batch) -> None:
    assert distillation_loss(teacher, teacher, batch).item() == pytest.approx(0.0, abs=1e-6)
    swapped = forward_kl(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]]), torch.ones(1))
    assert swapped != forward_kl(torch.tensor([[0.0, 0.5]]), torch.tensor([[2.0, 0.0]]), torch.ones(1))


@torch.no_grad()
def test_alignment_feeds_every_layer_with_the_teachers_input(teacher: Qwen3ForCausalLM, batch: Batch) -> None:
    student = new_student(teacher, 3, StudentConfig())
    total = count = 0.0
    for ids, _ in separate(batch):
        states = teacher(ids[None], output_hidden_states=True).hidden_states
        position_embeddings = teacher.model.rotary_emb(states[0], torch.arange(len(ids))[None])
        for number, layer in enumerate(teacher.model.layers):
            normed = layer.input_layernorm(states[number])
            mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
            wanted, _ = layer.self_attn(
                hidden_states=normed, position_embeddings=position_embeddings, attention_mask=mask
            )
            made, _ = student.model.layers[number].mixer(normed)
            total += (made - wanted).norm(dim=-1).sum().item() * teacher.config.hidden_size**-0.5
        count += len(ids)
    assert alignment_loss(teacher, student, batch).item() == pytest.approx(total / count, rel=1e-4)


EXPECTED = {
    "1": lambda name: ".mixer.q_proj" in name or ".mixer.k_proj" in name,
    "2": lambda name: ".mixer." in name,
    "3a": lambda name: "self_attn" not in name and "embed" not in name and "lm_head" not in name,
    "3b": lambda name: "self_attn" not in name and "embed" not in name and "lm_head" not in name,
}


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_a_stage_moves_its_own_parameters_and_no_others(
    kind: str, teacher: Qwen3ForCausalLM, fetch: Callable[[int], Tokens], tmp_path: Path
) -> None:
    student = new_student(teacher, 3, StudentConfig())
    if kind in ("3a", "3b"):
        student = assembled(teacher, student, (1,))
    before = {name: value.clone() for name, value in student.named_parameters()}
    teacher_before = {name: value.clone() for name, value in teacher.named_parameters()}
    stage = StageConfig(
        name="s", kind=kind, stream="x", stream_seed=0, steps=2, muon_lr=0.01, adamw_lr=0.01, prompt_weight=1.0
    )
    train(stage, student, trainable_in(kind), loss_in(kind, teacher, student), Stream(fetch, 2, 96, 0), tmp_path)
    for name, value in student.named_parameters():
        assert torch.equal(value, before[name]) != EXPECTED[kind](name), name
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.named_parameters())


def test_a_new_student_has_the_teachers_values_and_random_queries(teacher: Qwen3ForCausalLM) -> None:
    student = new_student(teacher, 3, StudentConfig())
    for mine, theirs in zip(student.model.layers, teacher.model.layers, strict=True):
        assert torch.equal(mine.mixer.v_proj.weight, theirs.self_attn.v_proj.weight)
        assert torch.equal(mine.mixer.o_proj.weight, theirs.self_attn.o_proj.weight)
        assert torch.equal(mine.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
        assert not torch.equal(mine.mixer.q_proj.weight, theirs.self_attn.q_proj.weight)
        assert mine.mixer.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)


def test_assembled_students_share_no_memory(teacher: Qwen3ForCausalLM) -> None:
    student = new_student(teacher, 3, StudentConfig())
    hybrid = assembled(teacher, student, (1,))
    with torch.no_grad():
        for parameter in hybrid.parameters():
            parameter.zero_()
    assert teacher.model.layers[1].self_attn.q_proj.weight.abs().sum() > 0
    assert student.model.layers[0].mixer.q_proj.weight.abs().sum() > 0
