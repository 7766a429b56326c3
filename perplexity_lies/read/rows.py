"""Rows of a comparison: one task's, and the overall one, estimated from paired records."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from perplexity_lies.read.numbers import OVERALL, Bootstrap, RungRow, SideScore, TaskRow, Unpaired
from perplexity_lies.read.pairing import Paired, Records, Seen, both, pair, read_by
from perplexity_lies.read.stats.bootstrap import CONTRAST_WEIGHTS, GAP_WEIGHTS, Floats, Stratum, estimate, resample
from perplexity_lies.read.stats.paired import flips, mcnemar_p
from perplexity_lies.record.manifest import RungFacts, TaskFacts
from perplexity_lies.record.records import Status
from perplexity_lies.rungs import CONTRASTS, RUNGS

BASELINE_WEIGHTS, STUDENT_WEIGHTS = (1.0, 0.0), (0.0, 1.0)
"""Weights of the columns (baseline, student) that give one side's score."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a row on one rung is estimated from: one task, or the tasks of the overall row."""

    strata: list[list[Stratum]]
    """By student, then by task."""
    records: list[list[Seen]]
    """By side: all records, paired or not."""


@dataclass(frozen=True, slots=True)
class TaskNumbers:
    """A task's row, with what the overall row needs of it."""

    row: TaskRow
    samples: dict[str, Sample]
    contrasts: dict[str, list[Stratum]]
    """Contrast -> stratum by student."""


def task_seed(task: str) -> int:
    """A task's own part of the bootstrap's seed: another task moves no interval."""
    return int.from_bytes(hashlib.sha256(task.encode("utf-8", "surrogatepass")).digest()[:4], "big")


def _strata(task: str, scores: Floats, subjects: Sequence[str], sides: int, bootstrap: Bootstrap) -> list[Stratum]:
    """By student: resamples of its pair with the baseline. The seed is the task's own: another task moves no interval.

    `scores` [n, k * sides] holds k rungs' scores, each of all sides.
    """
    own = task_seed(task)
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
                fallbacks=sum(reading.by_fallback for reading in read),
                truncation=sum(seen.reply_cut for seen in records) / len(records),
                cut_prompts=sum(seen.cut_tokens > 0 for seen in records),
                beyond_context=sum(seen.beyond_context for seen in records),
                bos_before_template=sum(seen.bos_before_template for seen in records),
                never_right=dict(sorted(Counter(seen.never_right for seen in records if seen.never_right).items())),
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
        again = read_by(paired, name, by_item)
        if again.items:
            strata = _strata(task, again.scores, again.subjects, len(sides), bootstrap)
            found[name] = _side_scores(Sample([[stratum] for stratum in strata], every), name)
    return dataclasses.replace(row, readings=found)


def task_numbers(
    facts: TaskFacts, sides: Sequence[Records], labels: Sequence[str], bootstrap: Bootstrap
) -> tuple[TaskNumbers, dict[str, Paired], list[Unpaired]]:
    """A task's numbers, its pairs by rung, and what did not pair."""
    task, unpaired = facts.name, list[Unpaired]()
    there = [rung for rung in RUNGS if any((task, rung) in records for records in sides)]
    pairs: dict[str, Paired] = {}
    rows: dict[str, RungRow] = {}
    samples: dict[str, Sample] = {}
    for rung in there:
        pairs[rung], left = pair(task, rung, sides, labels)
        unpaired += left
        if not pairs[rung].items:
            continue
        strata = _strata(task, pairs[rung].scores, pairs[rung].subjects, len(sides), bootstrap)
        every = [[seen for item in records.get((task, rung), {}).values() for seen in item] for records in sides]
        samples[rung] = Sample([[stratum] for stratum in strata], every)
        row = _rung_row(rung, facts.rungs.get(rung, RungFacts()), samples[rung])
        rows[rung] = _other_readings(row, task, pairs[rung], sides, bootstrap)
    strata_of: dict[str, list[Stratum]] = {}
    for contrast in CONTRASTS:
        if contrast.of in there and contrast.minus in there:
            common, alone = both(contrast, pairs)
            unpaired += [Unpaired(task=task, what=contrast.name, reason=reason, items=items) for reason, items in alone]
            if common.items:
                strata_of[contrast.name] = _strata(task, common.scores, common.subjects, len(sides), bootstrap)
    whole = TaskRow(
        task=task,
        title=facts.title,
        subjects=max((len(set(paired.subjects)) for paired in pairs.values()), default=0),
        rungs=rows,
        contrasts={
            name: (None, *(estimate([stratum], CONTRAST_WEIGHTS) for stratum in strata))
            for name, strata in strata_of.items()
        },
    )
    return TaskNumbers(whole, samples, strata_of), pairs, unpaired


def overall_tasks(tasks: Sequence[TaskNumbers]) -> list[TaskNumbers]:
    """The tasks that the overall row is the mean of: those with a hidden gap; where there are none, those with a number.

    A mean over rungs that rest on other tasks would not be a gap between rungs.
    """
    hidden = [task for task in tasks if all(contrast.name in task.contrasts for contrast in CONTRASTS)]
    return hidden or [task for task in tasks if task.row.rungs]


def overall_row(tasks: Sequence[TaskNumbers], sides: int) -> TaskRow | None:
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
