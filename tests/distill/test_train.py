"""Training: rates, the optimisers' shares, and above all that a killed run ends with the bits of an undisturbed one."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from distill.data import Batch, Stream, Tokens
from distill.recipe.settings import StageConfig
from distill.training.metrics import METRICS_FILE
from distill.training.muon import Muon, make_optimisers, orthogonalise
from distill.training.stages import Distillation, NextToken, StageLoss
from distill.training.states import saved_states
from distill.training.train import Tally, TrainingError, closing_loss, loss_and_gradients, opening_check, rate_at, train
from perplexity_lies.errors import MissingError, UsageError

STAGE = StageConfig(
    name="s", kind="pretrain", data="x", steps=24, rows=4, length=24, muon_lr=0.01, lr=0.003, save_every=3
)  # fmt: skip
ADAMW: dict[str, Any] = {"adamw_lr": 0.003, "weight_decay": 0.1, "betas": (0.9, 0.95)}
TIMES = ("cpu_s", "tokens_per_s")

WORKER = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_train import STAGE, tiny_stream
from conftest import TINY_TEACHER
from distill.training.stages import NextToken
from distill.miniature.teacher import new_teacher
from distill.miniature.tokenizer import build_tokenizer
from distill.training.train import train
from suites.miniature.world import vocabulary
model = new_teacher(TINY_TEACHER, build_tokenizer(vocabulary()), seed=0)
class Slow(NextToken):
    def terms(self, batch, give):
        time.sleep(0.03)
        super().terms(batch, give)
train(STAGE, model, lambda name: True, Slow(model), tiny_stream(), Path(sys.argv[2]))
torch.save(model.state_dict(), sys.argv[3])
"""


def tiny_stream(prompt_weight: float = 1.0) -> Stream:
    """Documents of random ids, a function of their number."""

    def documents(index: int) -> Tokens:
        rng = random.Random(index)
        size = rng.randint(4, 12)
        return Tokens([rng.randint(6, 250) for _ in range(size)], ((rng.randint(1, size - 1), size),))

    return Stream(documents, rows=4, length=24, prompt_weight=prompt_weight, pad_id=0)


class Disturbed(StageLoss):
    """A loss multiplied by `factor` from its `start`-th step on."""

    def __init__(self, loss: StageLoss, start: int, factor: float) -> None:
        self.loss, self.start, self.factor, self.steps = loss, start, factor, 0

    def weight(self, batch: Batch) -> float:
        return self.loss.weight(batch)

    def terms(self, batch: Batch, give: Callable[[Tensor], None]) -> None:
        self.steps += 1
        self.loss.terms(batch, lambda term: give(term * (self.factor if self.steps >= self.start else 1.0)))


def run(model: nn.Module, directory: Path, stage: StageConfig = STAGE, **options: Any) -> Tally:
    loss = options.pop("loss", None) or NextToken(model)
    return train(stage, model, lambda name: True, loss, options.pop("stream", tiny_stream()), directory, **options)


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def start_worker(directory: Path, result: Path) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WORKER, here, str(directory), str(result)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def steps_saved(directory: Path) -> int:
    return max((int(path.stem.partition("-")[2]) for path in saved_states(directory)), default=0)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    worker = start_worker(plain, tmp_path / "plain.pt")
    assert worker.wait() == 0, worker.stderr and worker.stderr.read().decode()
    for steps in (6, 12):
        worker = start_worker(killed, tmp_path / "killed.pt")
        while worker.poll() is None:
            if steps_saved(killed) >= steps:
                worker.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert worker.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed.pt").exists()
    worker = start_worker(killed, tmp_path / "killed.pt")
    assert worker.wait() == 0, worker.stderr and worker.stderr.read().decode()
    undisturbed, resumed = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("plain", "killed"))
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text().splitlines()]
        for path in (plain / METRICS_FILE, killed / METRICS_FILE)
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [10, 20, 24]
    assert steps_saved(killed) == 24 and len(saved_states(killed)) == 1


def test_a_finished_stage_is_not_run_again(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    stage = dataclasses.replace(STAGE, steps=2)
    tally = run(teacher, tmp_path, stage)
    after = copy_of(teacher)

    class Never(NextToken):
        def terms(self, batch: Batch, give: Callable[[Tensor], None]) -> None:
            raise AssertionError("a finished stage asked for a loss")

    again = run(teacher, tmp_path, stage, loss=Never(teacher))
    assert again == tally and tally.step == 2 and tally.tokens > 0 and tally.position > 0
    assert all(torch.equal(value, after[name]) for name, value in teacher.state_dict().items())


def test_another_stages_state_is_refused(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    run(teacher, tmp_path, dataclasses.replace(STAGE, steps=1))
    with pytest.raises(UsageError, match="made with other settings"):
        run(teacher, tmp_path, dataclasses.replace(STAGE, steps=2))
    without_effect = {"micro_rows": 1, "save_every": 7, "keep_last": 2, "measure_every": 9}
    assert run(teacher, tmp_path, dataclasses.replace(STAGE, steps=1, **without_effect)).step == 1


def test_the_last_states_are_kept(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    run(teacher, tmp_path, dataclasses.replace(STAGE, steps=11, keep_last=2))
    assert [path.name for path in saved_states(tmp_path)] == ["state-9.pt", "state-11.pt"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_the_run(teacher: Qwen3ForCausalLM, tmp_path: Path, bad: float) -> None:
    with pytest.raises(TrainingError, match="stage 's' diverged at step 4") as caught:
        run(teacher, tmp_path, loss=Disturbed(NextToken(teacher), 5, bad))
    assert "lower the learning rates" in str(caught.value) and caught.value.exit_code == 2
    saved = torch.load(tmp_path / "state-3.pt", weights_only=True)
    assert saved["tally"]["step"] == 3 and all(torch.isfinite(value).all() for value in saved["model"].values())
    kept = torch.load(tmp_path / "diverged-4.pt", weights_only=True)
    assert torch.equal(kept["batch"]["input_ids"], tiny_stream().batch(kept["position"]).input_ids)
    assert kept["step"] == 4 and str(tmp_path / "diverged-4.pt") in str(caught.value)


def test_a_loss_that_runs_away_stops_the_run(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    stage = dataclasses.replace(STAGE, steps=80, lr=1e-6, muon_lr=0.0)
    with pytest.raises(TrainingError, match=r"diverged at step (\d+)") as caught:
        run(teacher, tmp_path, stage, loss=Disturbed(NextToken(teacher), 56, 20.0))
    assert "at best it was" in str(caught.value)
    assert len(list(tmp_path.glob("diverged-*.pt"))) == 1
    run(teacher, tmp_path / "other", stage, loss=Disturbed(NextToken(teacher), 56, 2.0))


def test_what_counts_as_running_away() -> None:
    assert Tally(step=60, best=2.0, loss=8.1).ran_away
    assert not Tally(step=60, best=2.0, loss=7.9).ran_away
    assert not Tally(step=40, best=2.0, loss=8.1).ran_away
    assert not Tally(step=60, best=0.01, loss=0.4).ran_away


@pytest.mark.parametrize("micro_rows", [1, 3, 4])
def test_micro_batches_change_memory_and_nothing_else(
    teacher: Qwen3ForCausalLM, make_hybrid: Callable[..., nn.Module], micro_rows: int
) -> None:
    """The loss is that of the step's valid tokens, however unevenly rows have them."""
    batch = tiny_stream(prompt_weight=0.0).batch(0)
    assert len(set((batch.weights > 0).sum(1).tolist())) > 1
    found, begun = {}, make_hybrid((1,))
    for rows in (0, micro_rows):
        student = copy.deepcopy(begun)
        stage = dataclasses.replace(STAGE, kind="3b", micro_rows=rows)
        loss = loss_and_gradients(stage, Distillation(teacher, student), batch, torch.device("cpu"))
        found[rows] = [loss.float(), *(p.grad for p in student.parameters() if p.grad is not None)]
    for one, other in zip(found[0], found[micro_rows], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_recomputed_activations_change_nothing(
    teacher: Qwen3ForCausalLM, make_hybrid: Callable[..., nn.Module], tmp_path: Path
) -> None:
    ends, begun = [], make_hybrid((1,))
    for again in (False, True):
        student, calls = copy.deepcopy(begun), []
        student.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        stage = dataclasses.replace(STAGE, kind="3b", steps=2, checkpoint_activations=again)
        run(student, tmp_path / str(again), stage, loss=Distillation(teacher, student))
        ends.append(copy_of(student))
        assert len(calls) == (4 if again else 2) and not student.training
        assert not student.is_gradient_checkpointing
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


def test_bf16_keeps_weights_in_fp32_and_goes_the_same_way(
    teacher: Qwen3ForCausalLM, make_hybrid: Callable[..., nn.Module], tmp_path: Path
) -> None:
    begun, ends = make_hybrid((1,)), {}
    start = copy_of(begun)
    for precision in ("fp32", "bf16"):
        student = copy.deepcopy(begun)
        stage = dataclasses.replace(STAGE, kind="3b", steps=3, muon_lr=0.0, precision=precision)
        run(student, tmp_path / precision, stage, loss=Distillation(teacher, student))
        ends[precision] = copy_of(student)
    assert all(value.dtype == torch.float32 for value in ends["bf16"].values())
    moved, apart = (
        sum((ends["fp32"][n] - other[n]).square().sum().item() for n in start) ** 0.5 for other in (start, ends["bf16"])
    )
    assert 0 < apart < 0.3 * moved


def measured(teacher: Qwen3ForCausalLM, directory: Path, stop_at: int = -1, **change: Any) -> list[int]:
    """Steps at which a stage is measured; the measurement at step `stop_at` is interrupted."""
    seen: list[int] = []

    def look(tally: Tally) -> None:
        torch.rand(5)
        if tally.step == stop_at:
            raise KeyboardInterrupt
        seen.append(tally.step)

    stage = dataclasses.replace(STAGE, steps=8, save_every=100, **change)
    try:
        run(teacher, directory, stage, on_measure=look)
    except KeyboardInterrupt:
        assert stop_at > 0
    return seen


def test_measurements_come_by_tokens_and_at_the_end(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    begun = copy_of(teacher)
    per_step = run(teacher, tmp_path / "unmeasured", dataclasses.replace(STAGE, steps=8)).tokens / 8
    ended = copy_of(teacher)
    teacher.load_state_dict(begun)
    before = torch.get_rng_state()
    assert measured(teacher, tmp_path / "every", measure_every=round(3 * per_step)) == [3, 7, 8]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, ended[name]) for name, value in teacher.state_dict().items())
    assert measured(teacher, tmp_path / "every", measure_every=round(3 * per_step)) == []
    assert measured(teacher, tmp_path / "end", measure_every=0) == [8]


def test_a_resumed_run_makes_the_measurement_that_was_cut_off_and_no_other(
    teacher: Qwen3ForCausalLM, tmp_path: Path
) -> None:
    every = {"measure_every": 80}
    undisturbed = measured(teacher, tmp_path / "plain", **every)
    assert len(undisturbed) > 3
    first = measured(teacher, tmp_path / "cut", stop_at=undisturbed[2], **every)
    second = measured(teacher, tmp_path / "cut", **every)
    assert (first, second) == (undisturbed[:2], undisturbed[2:])


def test_a_stage_that_begins_with_other_weights_is_refused(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    loss, batch = NextToken(teacher), tiny_stream().batch(900)
    recorded = closing_loss(tmp_path, loss, batch)
    assert recorded == loss.value(batch)
    opening_check(recorded, loss.value(batch))
    with torch.no_grad():
        teacher.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    with pytest.raises(TrainingError, match="not the one that the last stage left") as caught:
        opening_check(recorded, loss.value(batch))
    assert f"{recorded:.6g}" in str(caught.value)
    assert closing_loss(tmp_path, loss, batch) == recorded != loss.value(batch)


def test_metrics_to_what_is_not_there(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"):
        run(teacher, tmp_path, report_to=["tensorbord"])
    with pytest.raises(MissingError, match="metrics to wandb"):
        sys.modules["wandb"] = None  # type: ignore[assignment]
        try:
            run(teacher, tmp_path, report_to=["wandb"])
        finally:
            del sys.modules["wandb"]


def test_a_stage_that_trains_nothing_is_refused(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trains nothing"):
        train(STAGE, teacher, lambda name: False, NextToken(teacher), tiny_stream(), tmp_path)


def test_warmup_stable_decay() -> None:
    stage = dataclasses.replace(STAGE, steps=100, warmup=0.1, decay=0.2, final=0.02)
    rates = [rate_at(stage, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert all(later < earlier for earlier, later in zip(rates[79:], rates[80:], strict=False))
    assert 0.02 < rates[-1] < 0.1


def test_training_learns(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    document = Tokens([2, 10, 20, 30, 40, 50, 3], ((1, 7),))
    stream = Stream(lambda index: document, rows=2, length=24, prompt_weight=1.0, pad_id=0)
    before = NextToken(teacher).value(stream.batch(0))
    run(teacher, tmp_path, dataclasses.replace(STAGE, steps=40), stream=stream)
    assert before > 3.0 and NextToken(teacher).value(stream.batch(0)) < 0.5


def test_orthogonalised_updates_keep_directions_and_level_singular_values() -> None:
    for shape in ((3, 8, 24), (2, 24, 8), (1, 16, 16)):
        update = torch.randn(shape)
        out = orthogonalise(update)
        left, _, right = torch.linalg.svd(update, full_matrices=False)
        inner = left.mT @ out @ right.mT
        assert (torch.linalg.svdvals(out) > 0.3).all() and (torch.linalg.svdvals(out) < 1.3).all()
        diagonal = torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
        torch.testing.assert_close(inner, diagonal, atol=1e-3, rtol=0)


def test_muon_takes_the_matrices_and_adamw_the_rest(teacher: Qwen3ForCausalLM) -> None:
    named = dict(teacher.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}

    def owned(optimiser: torch.optim.Optimizer) -> set[str]:
        return {names[id(p)] for group in optimiser.param_groups for p in group["params"]}

    muon, adamw = make_optimisers(named.items(), muon_lr=0.02, **ADAMW)
    assert isinstance(muon, Muon)
    assert owned(muon) == {name for name in named if "_proj" in name}
    assert owned(adamw) == set(named) - owned(muon) and "model.embed_tokens.weight" in owned(adamw)
    (alone,) = make_optimisers(named.items(), muon_lr=0.0, **ADAMW)
    decayed = {names[id(p)] for group in alone.param_groups if group["weight_decay"] for p in group["params"]}
    assert owned(alone) == set(named) and decayed == {name for name in named if "_proj" in name}


def test_muon_step_is_its_definition() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(12, 6))
    start, gradients = weight.detach().clone(), [torch.randn(12, 6) for _ in range(2)]
    optimiser = Muon([weight], lr=0.1)
    momentum, expected = torch.zeros(12, 6), start
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * momentum
        expected = expected - 0.1 * math.sqrt(12 / 6) * orthogonalise(update[None])[0]
    torch.testing.assert_close(weight.detach(), expected)
