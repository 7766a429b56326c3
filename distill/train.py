"""One stage of training: batches in, better weights out, resumable at any moment.

Warm-up, stable, decay (WSD) as in GenDistill's appendix B. State (weights, optimisers, torch's generator, position in
the stream, counts) is saved atomically every `save_every` steps; the same call after a kill goes on from there and ends
with the same bits as an uninterrupted one. Knows nothing of what the loss means.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from distill.data import Batch, Tokens, pack
from distill.muon import make_optimisers
from distill.recipe import StageConfig
from perplexity_lies.errors import PliesError, UsageError

STATE_FILE = "state.pt"
METRICS_FILE = "metrics.jsonl"
METRICS_EVERY_STEPS = 10


class TrainingError(PliesError):
    """Training cannot go on (exit code 2)."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Where batches come from, and their shape."""

    fetch: Callable[[int], Tokens]
    """Document number -> tokens."""
    rows: int
    length: int
    pad_id: int


@dataclass(slots=True)
class Tally:
    """What a stage has used so far."""

    step: int = 0
    position: int = 0
    """Documents consumed."""
    tokens: int = 0
    loss_tokens: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    loss: float = math.nan
    """Smoothed loss of the last steps, in nats (stages 1 and 2: in the units of their loss)."""


def rate_at(stage: StageConfig, step: int) -> float:
    """Learning rate at a step (0-based), as a share of the peak."""
    warmup, decay = max(1, round(stage.warmup * stage.steps)), round(stage.decay * stage.steps)
    if step < warmup:
        return (step + 1) / warmup
    if step >= stage.steps - decay:
        return stage.final + (1 - stage.final) * (stage.steps - step) / (decay + 1)
    return 1.0


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a state so that a reader finds the old one or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path, stage: StageConfig) -> dict[str, Any] | None:
    """The saved state, or None. Raises UsageError when it was made by a stage with other settings."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if state["stage"] != dataclasses.asdict(stage):
        raise UsageError(
            f"{path.parent} holds stage '{stage.name}' made with other settings",
            found="its settings differ from the recipe's",
            mend="choose another --out directory, or delete this one",
        )
    return state


def make_progress() -> Progress:
    """The bar of a stage: steps, tokens per second, loss, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("{task.fields[tokens]:,} tok {task.fields[speed]:,.0f}/s loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )


def _kept_metrics(path: Path, step: int) -> None:
    """Cuts off the lines of steps after the saved state."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _one_step(
    batch: Batch,
    loss_of: Callable[[Batch], Tensor],
    optimisers: list[torch.optim.Optimizer],
    parameters: list[nn.Parameter],
    stage: StageConfig,
    step: int,
) -> tuple[float, float]:
    """One update; returns loss and gradient norm. Raises TrainingError when either is not a number."""
    loss = loss_of(batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, stage.clip)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise TrainingError(
            f"stage '{stage.name}' diverged at step {step}",
            found=f"loss {loss.item()}, gradient norm {norm.item()}",
            mend="lower the learning rates of this stage in the recipe",
        )
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
    return loss.item(), norm.item()


class _Run:
    """A stage under way: its optimisers and tally, and how they are saved and found again."""

    def __init__(self, stage: StageConfig, model: nn.Module, named: list[tuple[str, nn.Parameter]], directory: Path):
        self.stage, self.model, self.directory = stage, model, directory
        self.optimisers = make_optimisers(
            named, muon_lr=stage.muon_lr, adamw_lr=stage.adamw_lr, weight_decay=stage.weight_decay
        )
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        self.tally = Tally()
        state = load_state(directory / STATE_FILE, stage)
        if state is not None:
            model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            torch.set_rng_state(state["rng"])
            self.tally = Tally(**state["tally"])
        _kept_metrics(directory / METRICS_FILE, self.tally.step)

    def set_rate(self) -> float:
        """Sets this step's learning rates; returns them as a share of the peak."""
        rate = rate_at(self.stage, self.tally.step)
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
        return rate

    def count(self, batch: Batch, loss: float, cpu_s: float, wall_s: float) -> None:
        """Adds a step to the tally."""
        tally = self.tally
        tally.step, tally.position = tally.step + 1, batch.next_position
        tally.tokens, tally.loss_tokens = tally.tokens + batch.tokens, tally.loss_tokens + batch.loss_tokens
        tally.cpu_s, tally.wall_s = tally.cpu_s + cpu_s, tally.wall_s + wall_s
        tally.loss = loss if math.isnan(tally.loss) else 0.95 * tally.loss + 0.05 * loss

    def log(self, metrics: TextIO, loss: float, norm: float, rate: float) -> None:
        """One line of metrics."""
        tally = self.tally
        line = {"step": tally.step, "loss": loss, "gradient_norm": norm, "rate": rate, "tokens": tally.tokens}
        metrics.write(json.dumps({**line, "cpu_s": round(tally.cpu_s, 2)}) + "\n")
        metrics.flush()

    def save(self) -> None:
        """Writes the state."""
        state = {
            "stage": dataclasses.asdict(self.stage),
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "rng": torch.get_rng_state(),
            "tally": dataclasses.asdict(self.tally),
        }
        save_state(self.directory / STATE_FILE, state)


def train(
    stage: StageConfig,
    model: nn.Module,
    trainable: Callable[[str], bool],
    loss_of: Callable[[Batch], Tensor],
    stream: Stream,
    directory: Path,
) -> Tally:
    """Runs a stage to its end in `directory`, from wherever it was left, and returns what it used.

    Parameters whose name is not `trainable` are frozen for the stage. Raises TrainingError on a loss that is not a
    number, UsageError when the directory holds the same stage with other settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name))
        parameter.grad = None
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    run = _Run(stage, model, named, directory)
    tally, parameters = run.tally, [parameter for _, parameter in named]
    with make_progress() as progress, (directory / METRICS_FILE).open("a", encoding="utf-8") as metrics:
        bar = progress.add_task(
            stage.name, total=stage.steps, completed=tally.step, tokens=tally.tokens, speed=0.0, loss=tally.loss
        )
        while tally.step < stage.steps:
            cpu, wall = time.process_time(), time.perf_counter()
            rate = run.set_rate()
            batch = pack(
                stream.fetch,
                tally.position,
                rows=stream.rows,
                length=stream.length,
                prompt_weight=stage.prompt_weight,
                pad_id=stream.pad_id,
            )
            loss, norm = _one_step(batch, loss_of, run.optimisers, parameters, stage, tally.step)
            run.count(batch, loss, time.process_time() - cpu, time.perf_counter() - wall)
            speed = tally.tokens / max(tally.wall_s, 1e-9)
            progress.update(bar, completed=tally.step, tokens=tally.tokens, speed=speed, loss=tally.loss)
            if tally.step % METRICS_EVERY_STEPS == 0 or tally.step == stage.steps:
                run.log(metrics, loss, norm, rate)
            if tally.step % stage.save_every == 0 or tally.step == stage.steps:
                run.save()
    model.requires_grad_(True)
    return tally
