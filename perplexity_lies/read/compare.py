"""Run directories -> `Comparison`: refuse what cannot be compared, pair (`pairing`), estimate (`stats`), add `cautions`.

    compare_runs("runs/miniature-teacher-...", "runs/miniature-student-...", "runs/miniature-other-...")

The first run is the baseline. Items must pair on all sides, so that all students are judged on the same ones; a student's
interval is estimated from its own pair with the baseline, so that another student beside it does not move it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perplexity_lies.errors import UsageError
from perplexity_lies.read.causes import causes_of
from perplexity_lies.read.cautions import caution
from perplexity_lies.read.comparison import Comparison, load_comparison
from perplexity_lies.read.cuts import cut_differently
from perplexity_lies.read.numbers import (
    ABSENT,
    SHORT,
    STATUS_CODES,
    Caution,
    Intervals,
    RungItems,
    Side,
    TaskItems,
    Unpaired,
)
from perplexity_lies.read.pairing import Paired, Records, Seen, mean_score, scan
from perplexity_lies.read.rows import TaskNumbers, adjusted, overall_row, overall_tasks, task_numbers
from perplexity_lies.read.stats.estimate import CONFIDENCE
from perplexity_lies.read.stats.regimes import Clusters
from perplexity_lies.read.waterfall import waterfalls
from perplexity_lies.record.manifest import Manifest, TaskFacts
from perplexity_lies.record.records import Status
from perplexity_lies.record.store import Run, open_run

__all__ = ["Comparison", "compare_runs", "load_comparison"]

ABSOLUTE_PATH = re.compile(r"~?/[^/\s]+/|[A-Za-z]:[\\/]")

# --- what may be compared -------------------------------------------------------------------------------------------


def _limit(run: Run) -> str:
    limit = run.manifest.suite.limit
    return "" if limit is None else f" --limit {limit}"


def _refuse_incomplete(run: Run) -> None:
    if run.manifest.complete:
        return
    checkpoint, suite = run.manifest.checkpoint.name, run.manifest.suite.name
    again = f"plies evaluate {checkpoint} --suite {suite}{_limit(run)} --out {run.path.parent.parent}"
    raise UsageError(
        f"the run {str(run.path)!r} is not complete",
        found="its manifest says that items are still to be asked",
        mend=f"{again}   (with the --data, --engine and --dtype it had, it continues where it stopped)",
    )


def _refuse_different(baseline: Run, student: Run) -> None:
    """Suite, limit and dtype must agree: otherwise a difference is not the checkpoints' own. A server's dtype is unknown."""
    one, other = baseline.manifest, student.manifest
    suite = f"--suite {one.suite.name}"
    for what, ours, theirs, flags in (
        ("suites", one.suite.digest, other.suite.digest, suite),
        ("limits", one.suite.limit, other.suite.limit, f"{suite}{_limit(baseline)}"),
        (
            "dtypes",
            one.settings.get("dtype"),
            other.settings.get("dtype"),
            f"{suite} --dtype {one.settings.get('dtype')}",
        ),
    ):
        if ours == theirs or (what == "dtypes" and "unknown" in (ours, theirs)):
            continue
        raise UsageError(
            f"the two runs cannot be compared: their {what} differ",
            found=(f"{ours!r} in {baseline.path}", f"{theirs!r} in {student.path}"),
            mend=f"plies evaluate {other.checkpoint.name} {flags}   (as the teacher was run)",
        )


# --- items ----------------------------------------------------------------------------------------------------------


def _letter(records: Sequence[Seen]) -> str:
    """The item table's letter for an item's records on one rung."""
    if not records:
        return ABSENT
    letters = [
        SHORT if seen.headline.status is Status.SCORED and seen.reply_cut else STATUS_CODES[seen.headline.status]
        for seen in records
    ]
    return next((letter for letter in letters if letter != STATUS_CODES[Status.SCORED]), letters[0])


def _items(task: str, pairs: dict[str, Paired], sides: Sequence[Records]) -> TaskItems:
    """The item table: every item that has a record."""
    found = {rung: [records.get((task, rung), {}) for records in sides] for rung in pairs}
    items = sorted({item for records in found.values() for side in records for item in side})
    subjects = {
        item: seen[0].subject
        for records in found.values()
        for side in records
        for item, seen in side.items()
        if seen[0].subject
    }
    rungs = {}
    for rung, records in found.items():
        paired = set(pairs[rung].items)
        rungs[rung] = RungItems(
            paired="".join("01"[item in paired] for item in items),
            scores=tuple(tuple(mean_score(side[item]) if item in side else None for item in items) for side in records),
            statuses=tuple("".join(_letter(side.get(item, ())) for item in items) for side in records),
            fragile=tuple(
                tuple(i for i, item in enumerate(items) if any(seen.fragile for seen in side.get(item, ())))
                for side in records
            ),
        )
    named = tuple(subjects.get(item, "") for item in items) if subjects else ()
    return TaskItems(task=task, items=tuple(items), subjects=named, rungs=rungs)


# --- sides ----------------------------------------------------------------------------------------------------------


def _without_paths(value: Any) -> Any:
    """Absolute paths cut to their last part: they tell of a machine, not of a measurement."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, str) and ABSOLUTE_PATH.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _side(run: Run, label: str) -> Side:
    manifest: Manifest = dataclasses.replace(
        run.manifest,
        timings={},
        fingerprint=(),
        checkpoint=dataclasses.replace(run.manifest.checkpoint, name=_without_paths(run.manifest.checkpoint.name)),
        settings=_without_paths(run.manifest.settings),
        engine=_without_paths(run.manifest.engine),
    )
    return Side(
        name=manifest.checkpoint.name,
        label=label,
        run=str(run.path.absolute()),
        records_digest=run.records_digest(),
        manifest=manifest,
    )


def _tasks(runs: Sequence[Run], sides: Sequence[Records]) -> list[TaskFacts]:
    """The manifests' tasks in their order, then tasks that only records name."""
    named = {facts.name: facts for run in reversed(runs) for facts in reversed(run.manifest.tasks)}
    found = dict(reversed(named.items()))
    for task in sorted({task for records in sides for task, _ in records}):
        found.setdefault(task, TaskFacts(name=task))
    return list(found.values())


def labels_of(students: int) -> tuple[str, ...]:
    """`teacher`, `student`; with several students `student 1`, `student 2` ..."""
    return ("teacher", *(["student"] if students == 1 else [f"student {i}" for i in range(1, students + 1)]))


def compare_runs(*runs: str | Path, clusters: Clusters | None = None) -> Comparison:
    """Compare the run of a baseline (first) with the runs of one or more students on the same suite.

    `clusters`: whether a task's subjects are a `sample` of more such, so that intervals are clustered by them, or the
    `benchmark` itself, so that they are stratified; None takes what the suite says of each task (`sample` where it is
    silent). Raises UsageError for fewer than two runs, where a run is incomplete, or where suite, limit or dtype differ,
    so that a difference would not be the checkpoints' own.
    """
    if len(runs) < 2:
        raise UsageError(
            "a comparison needs a baseline and a student",
            found=f"{len(runs)} run directories",
            mend="plies report RUN RUN",
        )
    opened = [open_run(Path(run)) for run in runs]
    for run in opened:
        _refuse_incomplete(run)
        _refuse_different(opened[0], run)
    labels = labels_of(len(opened) - 1)
    sides = [scan(run) for run in opened]
    described = tuple(_side(run, label) for run, label in zip(opened, labels, strict=True))
    tasks: list[TaskNumbers] = []
    unpaired: list[Unpaired] = []
    items: list[TaskItems] = []
    seeds: list[str] = []
    by_task: list[tuple[str, dict[str, Paired]]] = []
    cuts: list[Caution] = []
    for facts in _tasks(opened, sides):
        task, pairs, left = task_numbers(facts, sides, labels, clusters)
        tasks.append(task)
        unpaired += left
        items.append(_items(facts.name, pairs, sides))
        by_task.append((facts.name, pairs))
        if _seeds_differ(facts.name, pairs, sides):
            seeds.append(facts.name)
        said = cut_differently(facts.name, pairs, sides, labels)
        cuts += [Caution(kind="cut differently", task=facts.name, text=text) for text in said]
    overall = overall_row(overall_tasks(tasks), len(sides))
    kinds = {task.row.task: task.clusters for task in tasks}
    rows = adjusted([task.row for task in tasks], len(sides))
    return Comparison(
        sides=described,
        tasks=rows,
        overall=overall,
        items_of=tuple(items),
        unpaired=tuple(unpaired),
        cautions=(*caution(described, rows, overall, items, unpaired, seeds), *cuts),
        intervals=Intervals(
            confidence=CONFIDENCE, clusters={task.row.task: task.clusters for task in tasks if task.row.subjects > 1}
        ),
        waterfalls=waterfalls(by_task, len(sides), kinds),
        causes=causes_of(by_task, opened, kinds),
    )


def _seeds_differ(task: str, pairs: dict[str, Paired], sides: Sequence[Records]) -> bool:
    """Whether the sides were asked a paired item with other seeds."""
    return any(
        len({tuple(seen.seed for seen in records[task, rung][item]) for records in sides}) > 1
        for rung, paired in pairs.items()
        for item in paired.items
    )
