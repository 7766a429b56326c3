"""What a stage reports while it runs: a progress bar, a JSON line every few steps, TensorBoard or W&B on request.

Only the first process reports.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from distill.training.distributed import is_first
from perplexity_lies.errors import MissingError, UsageError, nearest
from perplexity_lies.files import write_whole

METRICS_FILE = "metrics.jsonl"
Log = Callable[[dict[str, float]], None]
"""Takes one line of metrics; `step` is among them."""


def make_progress() -> Progress:
    """The bar of a stage: steps, tokens per second, loss, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("{task.fields[tokens]:,} tok {task.fields[speed]:,.0f}/s loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        disable=not is_first(),
    )


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, and a line that a kill left half written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_whole(path, "".join(f"{line}\n" for line in kept))


@contextmanager
def _jsonl(directory: Path, step: int) -> Iterator[Log]:
    path = directory / METRICS_FILE
    _keep_until(path, step)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield lambda line: print(json.dumps(line), file=file)


@contextmanager
def _tensorboard(directory: Path, step: int) -> Iterator[Log]:
    """TensorBoard's own writer; purges what was logged after `step`."""
    with import_module("torch.utils.tensorboard").SummaryWriter(str(directory), purge_step=step) as writer:

        def log(line: dict[str, float]) -> None:
            for name, value in line.items():
                if name != "step":
                    writer.add_scalar(name, value, line["step"])

        yield log


@contextmanager
def _wandb(directory: Path, step: int) -> Iterator[Log]:
    """W&B's own run; continues under the same id."""
    with import_module("wandb").init(dir=directory, id=directory.name, name=directory.name, resume="allow") as run:
        yield lambda line: run.log(line, step=int(line["step"]))


WRITERS: dict[str, Callable[[Path, int], Any]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def check_writers(report_to: Sequence[str]) -> None:
    """Raises UsageError, with the nearest name, for a writer that is not in WRITERS."""
    for name in report_to:
        if name not in WRITERS:
            raise UsageError(
                f"--report-to {name}: no such writer{nearest(name, WRITERS)}",
                found=f"known: {', '.join(WRITERS)}",
                mend="--report-to tensorboard",
            )


@contextmanager
def open_metrics(directory: Path, step: int, report_to: Sequence[str]) -> Iterator[Log]:
    """A function that writes a line of metrics to `directory`/metrics.jsonl and to the writers named in `report_to`.

    Lines after `step` are dropped first. Raises UsageError for an unknown writer, MissingError for one not installed.
    """
    if not is_first():
        yield lambda line: None
        return
    check_writers(report_to)
    with ExitStack() as stack:
        logs: list[Log] = [stack.enter_context(_jsonl(directory, step))]
        for name in report_to:
            try:
                logs.append(stack.enter_context(WRITERS[name](directory, step)))
            except ModuleNotFoundError as error:
                mend = f"pip install {name}"
                raise MissingError(f"metrics to {name}", found=f"{name} is not installed", mend=mend) from error

        def log(line: dict[str, float]) -> None:
            for each in logs:
                each(line)

        yield log
