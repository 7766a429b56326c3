"""The hidden gap as steps: what each factor of the ladder does to the teacher, to the student, and to the gap between them.

Over the items that pair on every rung of the path (`rungs.trunk`), the steps sum to the gap on the last rung minus the gap on
the first: the differences telescope. Each has the interval of its regime (`stats.regimes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perplexity_lies.checked import Checked
from perplexity_lies.read.numbers import OVERALL
from perplexity_lies.read.pairing import Paired
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.read.stats.regimes import SAMPLE, Clusters, Stratum, estimate, stratum
from perplexity_lies.rungs import trunk

RIGHT_FROM = 1.0
"""Mean score over seeds from which an item counts as right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Checked):
    """One factor changed."""

    lower: str
    upper: str
    factor: str
    teacher: Estimate
    """What the step does to the teacher's score, percentage points."""
    student: Estimate
    gap: Estimate
    """The student's change minus the teacher's: the step's part of the hidden gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells(Checked):
    """Items on one rung by who has them right."""

    rung: str
    both: int
    lost: int
    """Right by the teacher alone."""
    gained: int
    """Right by the student alone."""
    neither: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall(Checked):
    """One student on one task, or over all tasks."""

    task: str
    side: int
    """Place of the student in `Comparison.sides`."""
    first: Estimate
    """The gap on the first rung."""
    steps: tuple[Step, ...]
    hidden: Estimate
    """The gap on the last rung minus the gap on the first: the sum of the steps."""
    matrix: tuple[Cells, ...]
    """By rung of the path."""


@dataclass(frozen=True, slots=True)
class _Fall:
    """A task's scores on every rung of its path: columns (teacher, student) by rung."""

    rungs: tuple[str, ...]
    factors: tuple[str, ...]
    stratum: Stratum


def _weights(columns: int, changes: dict[int, float]) -> list[float]:
    found = [0.0] * columns
    for column, weight in changes.items():
        found[column] = weight
    return found


def _waterfall(task: str, side: int, falls: Sequence[_Fall]) -> Waterfall:
    """The falls, of equal paths, as one: the unweighted mean over them."""
    rungs, strata = falls[0].rungs, [fall.stratum for fall in falls]
    width = 2 * len(rungs)

    def value(changes: dict[int, float]) -> Estimate:
        return estimate(strata, _weights(width, changes))

    steps = tuple(
        Step(
            lower=rungs[i],
            upper=rungs[i + 1],
            factor=falls[0].factors[i + 1],
            teacher=value({2 * i: -1, 2 * i + 2: 1}),
            student=value({2 * i + 1: -1, 2 * i + 3: 1}),
            gap=value({2 * i: 1, 2 * i + 1: -1, 2 * i + 2: -1, 2 * i + 3: 1}),
        )
        for i in range(len(rungs) - 1)
    )
    return Waterfall(
        task=task,
        side=side,
        first=value({0: -1, 1: 1}),
        steps=steps,
        hidden=value({0: 1, 1: -1, width - 2: -1, width - 1: 1}),
        matrix=_matrix(rungs, np.vstack([one.cells for one in strata])),
    )


def _matrix(rungs: Sequence[str], cells: NDArray[np.float64]) -> tuple[Cells, ...]:
    right = cells >= RIGHT_FROM
    found = []
    for i, rung in enumerate(rungs):
        teacher, student = right[:, 2 * i], right[:, 2 * i + 1]
        found.append(
            Cells(
                rung=rung,
                both=int((teacher & student).sum()),
                lost=int((teacher & ~student).sum()),
                gained=int((~teacher & student).sum()),
                neither=int((~teacher & ~student).sum()),
            )
        )
    return tuple(found)


def waterfalls(
    by_task: Sequence[tuple[str, dict[str, Paired]]], sides: int, clusters: Mapping[str, Clusters]
) -> tuple[Waterfall, ...]:
    """Every task's waterfall by student, then the overall one by student where all tasks have one path.

    `clusters`: by task, what its subjects are.
    """
    found: list[Waterfall] = []
    for side in range(1, sides):
        falls = [
            (task, fall)
            for task, pairs in by_task
            if (fall := _fall(pairs, side, clusters.get(task, SAMPLE))) is not None
        ]
        found += [_waterfall(task, side, [fall]) for task, fall in falls]
        if falls and len({fall.rungs for _, fall in falls}) == 1:
            found.append(_waterfall(OVERALL, side, [fall for _, fall in falls]))
    return tuple(found)


def _fall(pairs: dict[str, Paired], side: int, clusters: Clusters) -> _Fall | None:
    """A task's path and its scores over the items that pair on all of it; None for fewer than two rungs or no items."""
    path = trunk(rung for rung, paired in pairs.items() if paired.items)
    if len(path) < 2:
        return None
    common = sorted(set.intersection(*(set(pairs[rung.name].items) for rung in path)))
    if not common:
        return None
    columns = []
    for rung in path:
        paired = pairs[rung.name]
        place = {item: i for i, item in enumerate(paired.items)}
        rows = paired.scores[[place[item] for item in common]]
        columns += [rows[:, 0], rows[:, side]]
    first = pairs[path[0].name]
    subject_of = dict(zip(first.items, first.subjects, strict=True))
    cells = stratum(np.column_stack(columns), [subject_of[item] for item in common], clusters)
    return _Fall(tuple(rung.name for rung in path), tuple(rung.factor for rung in path), cells)
