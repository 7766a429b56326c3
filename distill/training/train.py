"""One stage of training: batches in, better weights out, resumable at any moment.

The learning rate warms up, stays, decays (WSD, GenDistill's appendix B). A step's loss is that of all its valid tokens,
whatever micro-batches and processes compute it. The state is saved every `save_every` steps; the same call after a kill
goes on from there and ends with the same bits as an uninterrupted one. A loss that is not a number, or runs away, stops
the stage and keeps the batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distill.data import Batch, Stream
from distill.recipe.settings import StageConfig
from distill.training.distributed import add_up_gradients, added_up, is_first, is_sharded, own_rows, wait_for_all
from distill.training.metrics import Log, make_progress, open_metrics
from distill.training.muon import make_optimisers
from distill.training.stages import StageLoss
from distill.training.states import restored, save_state, save_whole
from perplexity_lies.errors import PliesError, UsageError
from perplexity_lies.files import read_json, write_whole

CLOSING_FILE = "closing.json"
METRICS_EVERY_STEPS = 10
SMOOTHING = 0.95
"""Weight of the past in the smoothed loss: a memory of about 20 steps."""
RUNAWAY, RUNAWAY_ABOVE, WATCHED_FROM_STEPS = 4.0, 0.5, 50
"""A stage has diverged when its smoothed loss is RUNAWAY times its best and above RUNAWAY_ABOVE (in the loss's unit)."""
SAME_LOSS = 1e-3
"""Largest relative difference between two losses of one model on one batch, from rounding alone."""


class TrainingError(PliesError):
    """Training cannot go on (exit code 2)."""


@dataclass(slots=True)
class Tally:
    """What a stage has used so far, summed over all processes."""

    step: int = 0
    position: int = 0
    """Documents consumed."""
    tokens: int = 0
    loss_tokens: int = 0
    cpu_s: float = 0.0
    """CPU seconds of the first process."""
    wall_s: float = 0.0
    loss: float = math.nan
    """Smoothed loss of the last steps, in nats (stages 1 and 2: in the unit of their loss)."""
    best: float = math.inf
    """Lowest smoothed loss so far."""
    measured: int = 0
    """Tokens at the last measurement."""

    def count(self, batch: Batch, loss: float, cpu_s: float, wall_s: float) -> None:
        """Adds a step."""
        self.step, self.position = self.step + 1, batch.next_position
        self.tokens, self.loss_tokens = self.tokens + batch.tokens, self.loss_tokens + batch.loss_tokens
        self.cpu_s, self.wall_s = self.cpu_s + cpu_s, self.wall_s + wall_s
        self.loss = loss if math.isnan(self.loss) else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        self.best = min(self.best, self.loss)

    @property
    def ran_away(self) -> bool:
        """Whether the loss has grown far beyond its best value."""
        return self.step > WATCHED_FROM_STEPS and self.loss > max(RUNAWAY * self.best, RUNAWAY_ABOVE)


def rate_at(stage: StageConfig, step: int) -> float:
    """Learning rate at a step (0-based), as a share of the peak."""
    warmup, decay = max(1, round(stage.warmup * stage.steps)), round(stage.decay * stage.steps)
    if step < warmup:
        return (step + 1) / warmup
    if step >= stage.steps - decay:
        return stage.final + (1 - stage.final) * (stage.steps - step) / (decay + 1)
    return 1.0


def closing_loss(directory: Path, loss: StageLoss, batch: Batch, rows: int = 0) -> float:
    """The loss with which the stage in `directory` closed on `batch`: computed the first time, then read back.

    `rows`: rows per forward pass; 0 = whole batch.
    """
    path = directory / CLOSING_FILE
    known = path.exists()
    wait_for_all()  # all must agree on it before one of them writes
    if known:
        return float(
            read_json(path, f"{path} holds no loss", f"delete {path.parent}: it will be trained again")["loss"]
        )
    value = loss.value(batch, rows)
    if is_first():
        write_whole(path, json.dumps({"loss": value}) + "\n")
    return value


def opening_check(recorded: float, found: float) -> None:
    """Raises TrainingError unless the loss `found` for the model as it is now is the one `recorded` when the stage closed."""
    if not math.isclose(found, recorded, rel_tol=SAME_LOSS, abs_tol=1e-5):
        raise TrainingError(
            "the model is not the one that the last stage left",
            found=f"loss {found:.6g} on the same batch, where that stage closed with {recorded:.6g}",
            mend="were its weights loaded? delete this stage's directory and start it again",
        )


def loss_and_gradients(stage: StageConfig, loss: StageLoss, batch: Batch, device: torch.device) -> Tensor:
    """Adds the gradients of an optimiser step's loss to those of the parameters; returns the loss, over all processes."""
    weight, mine = loss.weight(batch), own_rows(batch)
    total = torch.zeros((), device=device, dtype=torch.float64)

    def give(term: Tensor) -> None:
        with torch.autocast(device.type, enabled=False):
            (term / weight).backward()
        total.add_(term.detach() / weight)

    for part in mine.parts(stage.micro_rows):
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
            loss.terms(part.to(device), give)
    return added_up(total)


def clip(model: nn.Module, limit: float) -> float:
    """Clips the gradients of the model (of each model in an nn.ModuleDict) to a global norm; returns the norm before."""
    norms = []
    for member in model.values() if isinstance(model, nn.ModuleDict) else [model]:
        norm = torch.nn.utils.clip_grad_norm_(member.parameters(), limit)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.stack(norms).norm().item()


@contextmanager
def recomputing(model: Any, wanted: bool) -> Iterator[None]:
    """Inside: backward passes recompute activations (transformers' gradient checkpointing)."""
    if not wanted:
        yield
        return
    was_training = model.training
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.train(was_training).gradient_checkpointing_disable()


class _Run:
    """A running stage: its optimisers and tally, saved and restored."""

    def __init__(
        self,
        stage: StageConfig,
        model: nn.Module,
        trainable: Callable[[str], bool],
        loss: StageLoss,
        directory: Path,
        device: torch.device,
    ) -> None:
        self.stage, self.model, self.loss, self.directory, self.device = stage, model, loss, directory, device
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable(name))
            parameter.grad = None
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not named:
            raise UsageError(
                f"stage '{stage.name}' trains nothing",
                found=f"frozen: {', '.join(stage.frozen)}",
                mend=f"--set '{stage.name}.freeze=[embedding]'",
            )
        if is_sharded(model) and (stage.muon_lr or stage.kind in ("1", "2")):
            raise UsageError(
                f"stage '{stage.name}' cannot run on a sharded model",
                found="Muon needs whole matrices, stages 1 and 2 call mixers alone",
                mend="train it with whole models, or set muon_lr: 0",
            )
        self.parameters = [parameter for _, parameter in named]
        self.optimisers = make_optimisers(
            named, muon_lr=stage.muon_lr, adamw_lr=stage.lr, weight_decay=stage.weight_decay, betas=stage.betas
        )
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        self.tally = Tally(**(restored(directory, stage, model, self.optimisers) or {}))

    def step(self, batch: Batch) -> dict[str, float]:
        """One update; returns its line of metrics. Raises TrainingError when the loss is not a number or runs away."""
        cpu, wall = time.process_time(), time.perf_counter()
        rate = rate_at(self.stage, self.tally.step)
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
        loss = loss_and_gradients(self.stage, self.loss, batch, self.device).item()
        add_up_gradients(self.parameters)
        norm = clip(self.model, self.stage.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self.diverged(batch, f"loss {loss}, gradient norm {norm}")
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        tally = self.tally
        tally.count(batch, loss, time.process_time() - cpu, time.perf_counter() - wall)
        if tally.ran_away:
            raise self.diverged(batch, f"smoothed loss {tally.loss:.4g}, at best it was {tally.best:.4g}")
        return {
            "step": tally.step, "loss": loss, "gradient_norm": norm, "rate": rate, "tokens": tally.tokens,
            "loss_tokens": tally.loss_tokens, "tokens_per_s": round(tally.tokens / tally.wall_s, 1),
            "cpu_s": round(tally.cpu_s, 2),
        }  # fmt: skip

    def diverged(self, batch: Batch, found: str) -> TrainingError:
        """Saves the batch that did it; returns the error to raise."""
        step = self.tally.step
        path = self.directory / f"diverged-{step}.pt"
        if is_first():
            save_whole(path, {"step": step, "position": self.tally.position, "batch": dataclasses.asdict(batch)})
        return TrainingError(
            f"stage '{self.stage.name}' diverged at step {step}",
            found=(found, f"the batch is kept in {path}"),
            mend="lower the learning rates of this stage in the recipe",
        )

    def save(self) -> None:
        """Writes the state."""
        save_state(self.directory, self.stage, self.model, self.optimisers, dataclasses.asdict(self.tally))

    def ends(self) -> bool:
        """Whether the last step is done."""
        return self.tally.step >= self.stage.steps

    def measurement_is_due(self) -> bool:
        """Whether `measure_every` tokens have passed since the last measurement, or the stage has ended without one."""
        tally, every = self.tally, self.stage.measure_every
        passed = every > 0 and tally.tokens // every > tally.measured // every
        return passed or (self.ends() and tally.measured < tally.tokens)

    def measure(self, on_measure: Callable[[Tally], None]) -> None:
        """Calls `on_measure`, which may draw random numbers, and saves that it was called."""
        was_training = self.model.training
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.model.eval()
            on_measure(dataclasses.replace(self.tally))
            self.model.train(was_training)
        self.tally.measured = self.tally.tokens
        self.save()


def _steps(run: _Run, stream: Stream, log: Log, on_measure: Callable[[Tally], None] | None) -> None:
    """The steps that are left."""
    stage, tally = run.stage, run.tally
    with make_progress() as progress:
        shown: dict[str, Any] = {"tokens": tally.tokens, "speed": 0.0, "loss": tally.loss}
        bar = progress.add_task(stage.name, total=stage.steps, completed=tally.step, **shown)
        while True:
            if on_measure is not None and run.measurement_is_due():
                run.measure(on_measure)
            if run.ends():
                return
            line = run.step(stream.batch(tally.position))
            shown = {"tokens": tally.tokens, "speed": line["tokens_per_s"], "loss": tally.loss}
            progress.update(bar, completed=tally.step, **shown)
            if tally.step % METRICS_EVERY_STEPS == 0 or run.ends():
                log(line)
            measures = on_measure is not None and run.measurement_is_due()
            if tally.step % stage.save_every == 0 or run.ends() or measures:
                run.save()


def train(
    stage: StageConfig,
    model: nn.Module,
    trainable: Callable[[str], bool],
    loss: StageLoss,
    stream: Stream,
    directory: Path,
    *,
    device: str = "cpu",
    on_measure: Callable[[Tally], None] | None = None,
    report_to: Sequence[str] = (),
) -> Tally:
    """Runs a stage to its end in `directory`, from its last saved state on, and returns what it used.

    `model` is on `device` already, in float32; an nn.ModuleDict holds several independent ones. Parameters whose name is not
    `trainable` are frozen for the stage. `on_measure` is called in every process, after every `measure_every` tokens and
    at the end, and not again for what it was called for before a kill. `report_to`: names in `metrics.WRITERS`.
    Raises TrainingError on a loss that diverges, UsageError when the directory holds the same stage with other settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = _Run(stage, model, trainable, loss, directory, torch.device(device))
    recomputes = stage.checkpoint_activations and not isinstance(model, nn.ModuleDict)
    with open_metrics(directory, run.tally.step, report_to) as log, recomputing(model, recomputes):
        _steps(run, stream, log, on_measure)
    model.requires_grad_(True)
    return run.tally
