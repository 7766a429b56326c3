"""Rows of a comparison: one task's, and the overall one, estimated from paired records."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from perplexity_lies.read.numbers import OVERALL, RungRow, SideScore, TaskRow, Unpaired
from perplexity_lies.read.pairing import LIBRARY_VERSION, Paired, Records, Seen, both, pair, read_by
from perplexity_lies.read.stats.moments import Floats
from perplexity_lies.read.stats.multiple import benjamini_hochberg, holm
from perplexity_lies.read.stats.paired import flips, mcnemar_p
from perplexity_lies.read.stats.regimes import (
    BENCHMARK,
    CONTRAST_WEIGHTS,
    GAP_WEIGHTS,
    SAMPLE,
    Clusters,
    Stratum,
    estimate,
    stratum,
)
from perplexity_lies.read.stats.retention import retention
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
    chances: list[float]
    """By task: the score of guessing; empty where that of one is not known."""


@dataclass(frozen=True, slots=True)
class TaskNumbers:
    """A task's row, with what the overall row needs of it."""

    row: TaskRow
    samples: dict[str, Sample]
    contrasts: dict[str, list[Stratum]]
    """Contrast -> stratum by student."""
    clusters: Clusters


def _clusters(facts: TaskFacts, asked: Clusters | None) -> Clusters:
    """What a task's subjects are: as asked, or as the suite says."""
    return asked or (BENCHMARK if facts.subjects == BENCHMARK else SAMPLE)


def _strata(scores: Floats, subjects: Sequence[str], sides: int, clusters: Clusters) -> list[Stratum]:
    """By student: its pair with the baseline. `scores` [n, k * sides] holds k rungs' scores, each of all sides."""
    rungs = range(scores.shape[1] // sides)
    return [
        stratum(
            scores[:, [column for rung in rungs for column in (rung * sides, rung * sides + student)]],
            subjects,
            clusters,
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
        scores = np.vstack([one.cells for one in strata])
        gained, lost = flips(scores[:, 0], scores[:, 1]) if side else (0, 0)
        found.append(
            SideScore(
                score=estimate(strata, STUDENT_WEIGHTS if side else BASELINE_WEIGHTS),
                gap=estimate(strata, GAP_WEIGHTS) if side else None,
                retention=retention(strata, sample.chances) if side and sample.chances else None,
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


def _chances(rung: str, chance: float | None) -> list[float]:
    """A reply is taken to have no chance where the suite states none; a ranking's is then not known."""
    return [chance or 0.0] if RUNGS[rung].replies or chance is not None else []


def _rung_row(rung: str, facts: RungFacts, sample: Sample) -> RungRow:
    every = [seen for records in sample.records for seen in records]
    metrics, extractors = {seen.headline.metric for seen in every}, {next(iter(seen.readings)) for seen in every}
    as_asked = not metrics or facts.metric in metrics or all(map(LIBRARY_VERSION.search, extractors))
    return RungRow(
        rung=rung,
        metric=facts.metric if facts.metric and as_asked else ", ".join(sorted(metrics)),
        extractor=", ".join(sorted(extractors)),
        source=facts.source,
        chance=facts.chance,
        sides=_side_scores(sample),
    )


def _other_readings(row: RungRow, task: str, paired: Paired, sides: Sequence[Records], clusters: Clusters) -> RungRow:
    """The row with what other extractors read in the same replies, where they read them on every side."""
    by_item = [records.get((task, row.rung), {}) for records in sides]
    every = [[seen for item in records.values() for seen in item] for records in by_item]
    names = {name for records in every for seen in records for name in list(seen.readings)[1:]}
    found = {}
    for name in sorted(names):
        again = read_by(paired, name, by_item)
        if again.items:
            strata = _strata(again.scores, again.subjects, len(sides), clusters)
            found[name] = _side_scores(Sample([[one] for one in strata], every, _chances(row.rung, row.chance)), name)
    return dataclasses.replace(row, readings=found)


def task_numbers(
    facts: TaskFacts, sides: Sequence[Records], labels: Sequence[str], asked: Clusters | None
) -> tuple[TaskNumbers, dict[str, Paired], list[Unpaired]]:
    """A task's numbers, its pairs by rung, and what did not pair. `asked` overrules what the suite says of subjects."""
    task, unpaired = facts.name, list[Unpaired]()
    clusters = _clusters(facts, asked)
    there = [rung for rung in RUNGS if any((task, rung) in records for records in sides)]
    pairs: dict[str, Paired] = {}
    rows: dict[str, RungRow] = {}
    samples: dict[str, Sample] = {}
    for rung in there:
        pairs[rung], left = pair(task, rung, sides, labels)
        unpaired += left
        if not pairs[rung].items:
            continue
        strata = _strata(pairs[rung].scores, pairs[rung].subjects, len(sides), clusters)
        every = [[seen for item in records.get((task, rung), {}).values() for seen in item] for records in sides]
        asked_as = facts.rungs.get(rung, RungFacts())
        samples[rung] = Sample([[one] for one in strata], every, _chances(rung, asked_as.chance))
        rows[rung] = _other_readings(_rung_row(rung, asked_as, samples[rung]), task, pairs[rung], sides, clusters)
    strata_of: dict[str, list[Stratum]] = {}
    for contrast in CONTRASTS:
        if contrast.of in there and contrast.minus in there:
            common, alone = both(contrast, pairs)
            unpaired += [Unpaired(task=task, what=contrast.name, reason=reason, items=items) for reason, items in alone]
            if common.items:
                strata_of[contrast.name] = _strata(common.scores, common.subjects, len(sides), clusters)
    whole = TaskRow(
        task=task,
        title=facts.title,
        subjects=max((len(set(paired.subjects)) for paired in pairs.values()), default=0),
        rungs=rows,
        contrasts={
            name: (None, *(estimate([one], CONTRAST_WEIGHTS) for one in strata)) for name, strata in strata_of.items()
        },
    )
    return TaskNumbers(whole, samples, strata_of, clusters), pairs, unpaired


def adjusted(rows: Sequence[TaskRow], sides: int) -> tuple[TaskRow, ...]:
    """The tasks' rows with their McNemar p-values adjusted for the number of tasks, by rung and student."""
    found = [dict(row.rungs) for row in rows]
    for rung in RUNGS:
        asked = [rungs for rungs in found if rung in rungs]
        for side in range(1, sides):
            p_values = [rungs[rung].sides[side].mcnemar_p for rungs in asked]
            for rungs, *both_p in zip(asked, holm(p_values), benjamini_hochberg(p_values), strict=True):
                every = list(rungs[rung].sides)
                every[side] = dataclasses.replace(every[side], holm_p=both_p[0], benjamini_hochberg_p=both_p[1])
                rungs[rung] = dataclasses.replace(rungs[rung], sides=tuple(every))
    return tuple(dataclasses.replace(row, rungs=rungs) for row, rungs in zip(rows, found, strict=True))


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
        guessed = [chance for task in having for chance in task.samples[rung].chances]
        sample = Sample(
            [[one for task in having for one in task.samples[rung].strata[i]] for i in range(sides - 1)],
            [[seen for task in having for seen in task.samples[rung].records[i]] for i in range(sides)],
            guessed if len(guessed) == len(having) else [],
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
