"""Why a student loses items where it writes its answer: each lost item has one cause, and so has each gained one.

    teacher right, student wrong   ->   the cause stands in the student's reply, and counts against it
    teacher wrong, student right   ->   the cause stands in the teacher's reply, and counts for the student

The shares of all causes sum to the gap on that rung: the ladder's last one, or `generation` where there is no ladder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perplexity_lies.checked import Checked
from perplexity_lies.read.numbers import OVERALL
from perplexity_lies.read.pairing import Paired
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.read.stats.regimes import SAMPLE, Clusters, Stratum, estimate, stratum
from perplexity_lies.record.records import ItemRecord, Status
from perplexity_lies.record.store import Run
from perplexity_lies.rungs import GENERATION, trunk

EMPTY, TRUNCATED, LOOP = "empty", "truncated", "degenerate loop"
NO_ANSWER, OFF_LABEL, WRONG, FRAGILE = "no answer found", "off the label set", "wrong answer", "numerically fragile"
CAUSES = (EMPTY, LOOP, TRUNCATED, NO_ANSWER, OFF_LABEL, WRONG, FRAGILE)
"""`fragile`: an answer that would be a wrong one, if the engine's own rounding could not have changed a token of it."""

LEAST_REPEATS = 3
"""A phrase of two tokens or more that ends a reply this often makes a loop (after Holtzman et al. 2020, arXiv:1904.09751)."""
LEAST_OF_ONE = 8
"""The same for a single token, which also repeats in sound text."""


def ends_in_a_loop(tokens: Sequence[int]) -> bool:
    """Whether a reply ends in three or more repeats of a phrase of two tokens or more, or eight of one token."""
    n = len(tokens)
    if n >= LEAST_OF_ONE and len(set(tokens[n - LEAST_OF_ONE :])) == 1:
        return True
    return any(
        tokens[n - 2 * period :] == [*tokens[n - period :]] * 2
        and list(tokens[n - LEAST_REPEATS * period :]) == [*tokens[n - period :]] * LEAST_REPEATS
        and len(set(tokens[n - period :])) > 1
        for period in range(2, n // LEAST_REPEATS + 1)
    )


def cause_of(record: ItemRecord) -> str:
    """The cause of a reply that is not right. A server's reply without token ids is judged by its words."""
    tokens = list(record.token_ids) or [hash(word) for word in record.text.split()]
    if not record.text.strip() and record.finish_reason != "length":
        return EMPTY
    if record.finish_reason == "length":
        return LOOP if ends_in_a_loop(tokens) else TRUNCATED
    if record.status is Status.SCORED:
        return FRAGILE if record.fragile else WRONG
    labels = [chr(ord("A") + index) for index in range(len(record.choices))]
    if record.gold in labels and not re.search(rf"(?<![A-Za-z])[{labels[0]}-{labels[-1]}](?![A-Za-z])", record.text):
        return OFF_LABEL
    return NO_ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause(Checked):
    """One cause's part of a student's gap."""

    cause: str
    lost: int
    """Items that the student has worse than its teacher, for this cause in its own reply."""
    gained: int
    """Items that it has better, for this cause in the teacher's reply."""
    share: Estimate
    """Percentage points of the gap; the shares of all causes sum to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Causes(Checked):
    """Why one student's gap on one rung of a task is what it is."""

    task: str
    side: int
    rung: str
    gap: Estimate
    causes: tuple[Cause, ...]
    """Causes that were found, the largest loss first."""


@dataclass(frozen=True, slots=True)
class _Split:
    stratum: Stratum
    """[n, 2 * causes]: what each item loses, and what it gains, in the two columns of its cause."""
    lost: dict[str, int]
    gained: dict[str, int]


def causes_of(
    by_task: Sequence[tuple[str, dict[str, Paired]]], runs: Sequence[Run], clusters: Mapping[str, Clusters]
) -> tuple[Causes, ...]:
    """Every task's causes by student, then the overall ones by student where all tasks end on one rung.

    `clusters`: by task, what its subjects are.
    """
    last = {task: rung for task, pairs in by_task if (rung := _last(pairs))}
    told = [_told(run, last) for run in runs]
    found: list[Causes] = []
    for side in range(1, len(runs)):
        splits = [
            (task, _split(task, pairs[last[task]], side, (told[0], told[side]), clusters.get(task, SAMPLE)))
            for task, pairs in by_task
            if task in last
        ]
        found += [_causes(task, side, last[task], [split]) for task, split in splits]
        if splits and len(set(last.values())) == 1:
            found.append(_causes(OVERALL, side, next(iter(last.values())), [split for _, split in splits]))
    return tuple(found)


def _last(pairs: dict[str, Paired]) -> str:
    """The rung whose replies are judged: the ladder's last, else `generation`; empty where neither paired."""
    there = [rung for rung, paired in pairs.items() if paired.items]
    path = [rung for rung in trunk(there) if rung.replies]
    return path[-1].name if path else GENERATION if GENERATION in there else ""


def _told(run: Run, last: dict[str, str]) -> dict[tuple[str, str], str]:
    """(task, item) -> the cause in its reply, the first of several seeds that is not right."""
    found: dict[tuple[str, str], str] = {}
    for task, rung in last.items():
        path = run.records_path(task, rung)
        for record in run.records([path] if path.exists() else []):
            if record.score < 1:
                found.setdefault((task, record.item), cause_of(record))
    return found


def _split(
    task: str,
    paired: Paired,
    side: int,
    told: tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]],
    clusters: Clusters,
) -> _Split:
    cells = np.zeros((len(paired.items), 2 * len(CAUSES)))
    lost: defaultdict[str, int] = defaultdict(int)
    gained: defaultdict[str, int] = defaultdict(int)
    for row, item in enumerate(paired.items):
        difference = float(paired.scores[row, side] - paired.scores[row, 0])
        if difference:
            cause = told[difference < 0].get((task, item), WRONG)
            cells[row, 2 * CAUSES.index(cause) + (difference > 0)] = abs(difference)
            (lost if difference < 0 else gained)[cause] += 1
    return _Split(stratum(cells, paired.subjects, clusters), lost, gained)


def _causes(task: str, side: int, rung: str, splits: Sequence[_Split]) -> Causes:
    strata = [split.stratum for split in splits]

    def share(columns: Iterable[int]) -> Estimate:
        wanted = set(columns)
        return estimate(strata, [sign if i in wanted else 0.0 for i in range(len(CAUSES)) for sign in (-1.0, 1.0)])

    found = [
        Cause(
            cause=cause,
            lost=sum(split.lost.get(cause, 0) for split in splits),
            gained=sum(split.gained.get(cause, 0) for split in splits),
            share=share([i]),
        )
        for i, cause in enumerate(CAUSES)
    ]
    there = sorted((each for each in found if each.lost or each.gained), key=lambda each: each.share.value)
    return Causes(task=task, side=side, rung=rung, gap=share(range(len(CAUSES))), causes=tuple(there))
