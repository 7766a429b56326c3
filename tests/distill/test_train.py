"""Training: rates, the optimisers' shares, and above all that a killed run ends with the bits of an undisturbed one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3ForCausalLM

from distill.data import Batch, Tokens
from distill.muon import Muon, make_optimisers, orthogonalise
from distill.recipe import StageConfig
from distill.stages import next_token_loss
from distill.train import METRICS_FILE, STATE_FILE, Stream, TrainingError, rate_at, train
from perplexity_lies.errors import UsageError

STAGE = StageConfig(
    name="s", kind="pretrain", stream="x", stream_seed=0, steps=24, muon_lr=0.01, adamw_lr=0.003, prompt_weight=1.0,
    save_every=3,
)  # fmt: skip

WORKER = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_train import STAGE, tiny_stream
from conftest import TINY_TEACHER
from distill.stages import next_token_loss
from distill.teacher import new_teacher
from distill.tokenizer import build_tokenizer
from distill.train import train
from suites.miniature.world import vocabulary
model = new_teacher(TINY_TEACHER, build_tokenizer(vocabulary()), seed=0)
def slow(batch):
    time.sleep(0.01)
    return next_token_loss(model, batch)
train(STAGE, model, lambda name: True, slow, tiny_stream(), Path(sys.argv[2]))
torch.save(model.state_dict(), sys.argv[3])
"""


def tiny_stream() -> Stream:
    """Documents of random ids, a function of their number."""

    def fetch(index: int) -> Tokens:
        rng = random.Random(index)
        return Tokens([rng.randint(6, 250) for _ in range(rng.randint(4, 12))], 2)

    return Stream(fetch, rows=2, length=24, pad_id=0)


def start_worker(directory: Path, result: Path) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WORKER, here, str(directory), str(result)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    worker = start_worker(plain, tmp_path / "plain.pt")
    assert worker.wait() == 0, worker.stderr and worker.stderr.read().decode()
    for steps in (6, 15):
        worker = start_worker(killed, tmp_path / "killed.pt")
        while worker.poll() is None:
            metrics = killed / METRICS_FILE
            state = killed / STATE_FILE
            if state.exists() and torch.load(state, weights_only=True)["tally"]["step"] >= steps:
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
        [{k: v for k, v in json.loads(line).items() if k != "cpu_s"} for line in path.read_text().splitlines()]
        for path in (plain / METRICS_FILE, metrics)
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [10, 20, 24]


def test_a_finished_stage_is_not_run_again(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    stage = dataclasses.replace(STAGE, steps=2)
    tally = train(stage, teacher, lambda n: True, lambda b: next_token_loss(teacher, b), tiny_stream(), tmp_path)
    after = {name: value.clone() for name, value in teacher.state_dict().items()}

    def never(batch: Batch) -> torch.Tensor:
        raise AssertionError("a finished stage asked for a loss")

    again = train(stage, teacher, lambda n: True, never, tiny_stream(), tmp_path)
    assert again == tally and tally.step == 2 and tally.tokens > 0 and tally.position > 0
    assert all(torch.equal(value, after[name]) for name, value in teacher.state_dict().items())


def test_another_stages_state_is_refused(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    def run(stage: StageConfig) -> None:
        train(stage, teacher, lambda n: True, lambda b: next_token_loss(teacher, b), tiny_stream(), tmp_path)

    run(dataclasses.replace(STAGE, steps=1))
    with pytest.raises(UsageError, match="made with other settings"):
        run(dataclasses.replace(STAGE, steps=2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_the_run(teacher: Qwen3ForCausalLM, tmp_path: Path, bad: float) -> None:
    steps = []

    def loss_of(batch: Batch) -> torch.Tensor:
        steps.append(1)
        return next_token_loss(teacher, batch) * (bad if len(steps) == 5 else 1.0)

    with pytest.raises(TrainingError, match="stage 's' diverged at step 4") as caught:
        train(STAGE, teacher, lambda n: True, loss_of, tiny_stream(), tmp_path)
    assert "lower the learning rates" in str(caught.value) and caught.value.exit_code == 2
    saved = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert saved["tally"]["step"] == 3 and all(torch.isfinite(value).all() for value in saved["model"].values())


def test_warmup_stable_decay() -> None:
    stage = dataclasses.replace(STAGE, steps=100, warmup=0.1, decay=0.2, final=0.02)
    rates = [rate_at(stage, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert all(later < earlier for earlier, later in zip(rates[79:], rates[80:], strict=False))
    assert 0.02 < rates[-1] < 0.1


def test_training_learns(teacher: Qwen3ForCausalLM, tmp_path: Path) -> None:
    document = Tokens([2, 10, 20, 30, 40, 50, 3], 1)
    stream = Stream(lambda index: document, rows=2, length=24, pad_id=0)
    losses = []

    def loss_of(batch: Batch) -> torch.Tensor:
        loss = next_token_loss(teacher, batch)
        losses.append(loss.item())
        return loss

    train(dataclasses.replace(STAGE, steps=40), teacher, lambda n: True, loss_of, stream, tmp_path)
    assert losses[0] > 3.0 and losses[-1] < 0.5


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

    muon, adamw = make_optimisers(named.items(), muon_lr=0.02, adamw_lr=0.003, weight_decay=0.1)
    assert isinstance(muon, Muon)
    assert owned(muon) == {name for name in named if "_proj" in name}
    assert owned(adamw) == set(named) - owned(muon) and "model.embed_tokens.weight" in owned(adamw)
    (alone,) = make_optimisers(named.items(), muon_lr=0.0, adamw_lr=0.003, weight_decay=0.1)
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
