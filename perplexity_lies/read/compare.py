"""Run directories -> `Comparison`: refuse what cannot be compared, pair (`pairing`), estimate (`stats`), add `cautions`.

    compare_runs("runs/miniature-teacher-...", "runs/miniature-student-...", "runs/miniature-other-...")

The first run is the baseline. Items must pair on all sides, so that all students are judged on the same ones; a student's
interval is estimated from its own pair with the baseline, so that another student beside it does not move it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from perplexity_lies.errors import UsageError
from perplexity_lies.read.cautions import caution
from perplexity_lies.read.comparison import (
    ABSENT,
    OVERALL,
    SHORT,
    STATUS_CODES,
    Bootstrap,
    Comparison,
    RungItems,
    RungRow,
    Side,
    SideScore,
    TaskItems,
    TaskRow,
    Unpaired,
    load_comparison,
)
from perplexity_lies.read.pairing import Paired, Records, Seen, both, pair, reread, scan
from perplexity_lies.read.stats.bootstrap import (
    CONTRAST_WEIGHTS,
    GAP_WEIGHTS,
    RESAMPLES,
    Stratum,
    estimate,
    resample,
)
from perplexity_lies.read.stats.estimate import CONFIDENCE
from perplexity_lies.read.stats.paired import flips, mcnemar_p
from perplexity_lies.record.manifest import Manifest, RungFacts, TaskFacts
from perplexity_lies.record.records import Status
from perplexity_lies.record.store import Run, open_run
from perplexity_lies.rungs import CONTRASTS, RUNGS

__all__ = ["Comparison", "compare_runs", "load_comparison"]

BASELINE_WEIGHTS, STUDENT_WEIGHTS = (1.0, 0.0), (0.0, 1.0)
"""Weights of the columns (baseline, student) that give one side's score."""
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


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """What a row on one rung is estimated from: one task, or the tasks of the overall row."""

    strata: list[list[Stratum]]
    """By student, then by task."""
    records: list[list[Seen]]
    """By side: all records, paired or not."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task's row, with what the overall row needs of it."""

    row: TaskRow
    samples: dict[str, Sample] = field(default_factory=dict)
    contrasts: dict[str, list[Stratum]] = field(default_factory=dict)
    """Contrast -> stratum by student."""


def _strata(task: str, scores: Any, subjects: Sequence[str], sides: int, bootstrap: Bootstrap) -> list[Stratum]:
    """By student: resamples of its pair with the baseline. The seed is the task's own: another task moves no interval.

    `scores` [n, k * sides] holds k rungs' scores, each of all sides.
    """
    own = int.from_bytes(hashlib.sha256(task.encode("utf-8", "surrogatepass")).digest()[:4], "big")
    rungs = range(scores.shape[1] // sides)
    return [
        resample(
            scores[:, [column for rung in rungs for column in (rung * sides, rung * sides + student)]],
            subjects,
            seed=(bootstrap.seed, own),
            resamples=bootstrap.resamples,
        )
        for student in range(1, sides)
    ]


def _side_scores(sample: Sample, extractor: str | None = None) -> tuple[SideScore, ...]:
    """One score a side; `extractor` instead of the headline's reading decides what counts as answered."""
    found = []
    for side, records in enumerate(sample.records):
        read = [seen.headline if extractor is None else seen.readings.get(extractor, seen.headline) for seen in records]
        statuses = Counter(reading.status for reading in read)
        strata = sample.strata[max(0, side - 1)]
        scores = np.vstack([stratum.cells for stratum in strata])
        gained, lost = flips(scores[:, 0], scores[:, 1]) if side else (0, 0)
        found.append(
            SideScore(
                score=estimate(strata, STUDENT_WEIGHTS if side else BASELINE_WEIGHTS),
                gap=estimate(strata, GAP_WEIGHTS) if side else None,
                gained=gained,
                lost=lost,
                mcnemar_p=mcnemar_p(gained, lost),
                records=len(records),
                statuses=dict(sorted(statuses.items())),
                coverage=statuses[Status.SCORED] / len(records),
                truncation=sum(seen.reply_cut for seen in records) / len(records),
                cut_prompts=sum(seen.prompt_cut for seen in records),
                beyond_context=sum(seen.beyond_context for seen in records),
            )
        )
    return tuple(found)


def _rung_row(rung: str, facts: RungFacts, sample: Sample) -> RungRow:
    metrics = {seen.headline.metric for records in sample.records for seen in records}
    return RungRow(
        rung=rung,
        metric=facts.metric or ", ".join(sorted(metrics)),
        source=facts.source,
        chance=facts.chance,
        sides=_side_scores(sample),
    )


def _other_readings(row: RungRow, task: str, paired: Paired, sides: Sequence[Records], bootstrap: Bootstrap) -> RungRow:
    """The row with what other extractors read in the same replies, where they read them on every side."""
    by_item = [records.get((task, row.rung), {}) for records in sides]
    every = [[seen for item in records.values() for seen in item] for records in by_item]
    names = {name for records in every for seen in records for name in list(seen.readings)[1:]}
    found = {}
    for name in sorted(names):
        again = reread(paired, name, by_item)
        if again.items:
            strata = _strata(task, again.scores, again.subjects, len(sides), bootstrap)
            found[name] = _side_scores(Sample([[stratum] for stratum in strata], every), name)
    return dataclasses.replace(row, readings=found)


def _task(
    facts: TaskFacts, sides: Sequence[Records], labels: Sequence[str], bootstrap: Bootstrap
) -> tuple[Task, dict[str, Paired], list[Unpaired]]:
    """A task's numbers, its pairs by rung, and what did not pair."""
    task, unpaired = facts.name, list[Unpaired]()
    there = [rung for rung in RUNGS if any((task, rung) in records for records in sides)]
    pairs: dict[str, Paired] = {}
    rows: dict[str, RungRow] = {}
    found = Task(TaskRow(task=task, title=facts.title, subjects=0, rungs=rows))
    for rung in there:
        pairs[rung], left = pair(task, rung, sides, labels)
        unpaired += left
        if not pairs[rung].items:
            continue
        strata = _strata(task, pairs[rung].scores, pairs[rung].subjects, len(sides), bootstrap)
        every = [[seen for item in records.get((task, rung), {}).values() for seen in item] for records in sides]
        found.samples[rung] = Sample([[stratum] for stratum in strata], every)
        row = _rung_row(rung, facts.rungs.get(rung, RungFacts()), found.samples[rung])
        rows[rung] = _other_readings(row, task, pairs[rung], sides, bootstrap)
    contrasts: dict[str, Any] = {}
    for contrast in CONTRASTS:
        if contrast.of in there and contrast.minus in there:
            common, alone = both(contrast, pairs)
            unpaired += [Unpaired(task=task, what=contrast.name, reason=reason, items=items) for reason, items in alone]
            if common.items:
                strata = _strata(task, common.scores, common.subjects, len(sides), bootstrap)
                found.contrasts[contrast.name] = strata
                contrasts[contrast.name] = (None, *(estimate([stratum], CONTRAST_WEIGHTS) for stratum in strata))
    subjects = max((len(set(paired.subjects)) for paired in pairs.values()), default=0)
    return (
        dataclasses.replace(found, row=dataclasses.replace(found.row, subjects=subjects, contrasts=contrasts)),
        pairs,
        unpaired,
    )


def overall_tasks(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that the overall row is the mean of: those with a hidden gap; where there are none, those with a number.

    A mean over rungs that rest on other tasks would not be a gap between rungs.
    """
    hidden = [task for task in tasks if all(contrast.name in task.contrasts for contrast in CONTRASTS)]
    return hidden or [task for task in tasks if task.row.rungs]


def _overall(tasks: Sequence[Task], sides: int) -> TaskRow | None:
    """Unweighted mean over `tasks`; on a rung that not all of them have there is none, unless no rung is common to all."""
    if not tasks:
        return None
    rungs = [rung for rung in RUNGS if all(rung in task.samples for task in tasks)]
    rungs = rungs or [rung for rung in RUNGS if any(rung in task.samples for task in tasks)]
    rows: dict[str, RungRow] = {}
    for rung in rungs:
        having = [task for task in tasks if rung in task.samples]
        chances = [task.row.rungs[rung].chance for task in having]
        known = [chance for chance in chances if chance is not None]
        sample = Sample(
            [[stratum for task in having for stratum in task.samples[rung].strata[i]] for i in range(sides - 1)],
            [[seen for task in having for seen in task.samples[rung].records[i]] for i in range(sides)],
        )
        rows[rung] = _rung_row(rung, RungFacts(chance=fmean(known) if len(known) == len(chances) else None), sample)
    contrasts = {
        contrast.name: (
            None,
            *(
                estimate([task.contrasts[contrast.name][i] for task in tasks], CONTRAST_WEIGHTS)
                for i in range(sides - 1)
            ),
        )
        for contrast in CONTRASTS
        if all(contrast.name in task.contrasts for task in tasks)
    }
    title = f"Mean of {len(tasks)} tasks" if len(tasks) > 1 else "One task"
    subjects = sum(task.row.subjects for task in tasks)
    return TaskRow(task=OVERALL, title=title, subjects=subjects, rungs=rows, contrasts=contrasts)


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
            scores=tuple(
                tuple(fmean(seen.headline.score for seen in side[item]) if item in side else None for item in items)
                for side in records
            ),
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


def compare_runs(*runs: str | Path, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare the run of a baseline (first) with the runs of one or more students on the same suite.

    `seed` and `resamples` are the bootstrap's. Raises UsageError for fewer than two runs, where a run is incomplete, or
    where suite, limit or dtype differ, so that a difference would not be the checkpoints' own.
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
    bootstrap = Bootstrap(resamples=resamples, confidence=CONFIDENCE, seed=seed)
    tasks: list[Task] = []
    unpaired: list[Unpaired] = []
    items: list[TaskItems] = []
    seeds: list[str] = []
    for facts in _tasks(opened, sides):
        task, pairs, left = _task(facts, sides, labels, bootstrap)
        tasks.append(task)
        unpaired += left
        items.append(_items(facts.name, pairs, sides))
        if _seeds_differ(facts.name, pairs, sides):
            seeds.append(facts.name)
    overall = _overall(overall_tasks(tasks), len(sides))
    rows = tuple(task.row for task in tasks)
    return Comparison(
        sides=described,
        tasks=rows,
        overall=overall,
        items_of=tuple(items),
        unpaired=tuple(unpaired),
        cautions=tuple(caution(described, rows, overall, items, unpaired, seeds)),
        bootstrap=bootstrap,
    )


def _seeds_differ(task: str, pairs: dict[str, Paired], sides: Sequence[Records]) -> bool:
    """Whether the sides were asked a paired item with other seeds."""
    return any(
        len({tuple(seen.seed for seen in records[task, rung][item]) for records in sides}) > 1
        for rung, paired in pairs.items()
        for item in paired.items
    )
