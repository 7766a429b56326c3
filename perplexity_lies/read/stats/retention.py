"""Retention: how much of the teacher's score above chance the student keeps, with its interval.

    retention([stratum(cells)], [0.25])  ->  Estimate(value=88.1, low=84.9, high=91.4, method="Fieller t", ...)

The interval is Fieller's (1954, Journal of the Royal Statistical Society B 16:175): the ratios r at which the mean of
student - r * teacher cannot be told from 0, both above chance. It needs no logarithm, so a student below chance has an interval
too, and it knows when there is none: where the teacher cannot be told from chance every ratio fits, and the delta method
would still give two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from perplexity_lies.read.stats.estimate import CONFIDENCE, NO_INTERVAL, Estimate, percent
from perplexity_lies.read.stats.moments import Floats, Moments, of_clusters, of_items, of_strata, of_tasks
from perplexity_lies.read.stats.regimes import ENOUGH_APART, Stratum, apart, why_none
from perplexity_lies.read.stats.student_t import t_quantile

FIELLER = "Fieller t"
AT_CHANCE = "the teacher's score cannot be told from guessing"


def _moments(one: Stratum, weights: Floats) -> Moments:
    """The mean of `weights` @ (teacher, student). Where few items flipped, one gained and one lost item are added."""
    values, few = one.cells[:, :2] @ weights, apart(one.cells[:, 1] - one.cells[:, 0]) < ENOUGH_APART
    if few:
        values = np.concatenate([values, weights])
    if one.member is not None and one.sampled:
        return of_clusters(values, np.concatenate([one.member, [one.units, one.units + 1]]) if few else one.member)
    return of_strata(values, one.member) if one.member is not None and not few else of_items(values)


def retention(strata: Sequence[Stratum], chances: Sequence[float]) -> Estimate | None:
    """Percent of the baseline's mean score above chance that the student keeps; `chances` [strata] in [0, 1].

    Columns of the strata: baseline, student. None where the baseline's mean is not above chance; with `why` and without an
    interval where it cannot be told from chance, or the regime has no interval. Raises ValueError without a stratum.
    """
    if not strata:
        raise ValueError("retention needs at least one stratum")
    teacher, student = np.mean([one.cells[:, :2].mean(0) for one in strata], axis=0) - math.fsum(chances) / len(chances)
    if teacher <= 1e-9:
        return None
    ratio = float(student / teacher)
    why = next((why for one in strata if (why := why_none(one))), "")
    low = high = None
    if not why:
        bounds = _fieller(strata, float(teacher), float(student))
        why = "" if bounds else AT_CHANCE
        low, high = (percent(bound) for bound in bounds) if bounds else (None, None)
    return Estimate(
        value=percent(ratio),
        low=low,
        high=high,
        n=sum(len(one.cells) for one in strata),
        units=sum(one.units for one in strata),
        apart=sum(apart(one.cells[:, 1] - one.cells[:, 0]) for one in strata),
        method=NO_INTERVAL if why else FIELLER,
        why=why,
    )


def _fieller(strata: Sequence[Stratum], teacher: float, student: float) -> tuple[float, float] | None:
    def over(*weights: float) -> Moments:
        return of_tasks([_moments(one, np.array(weights)) for one in strata])

    of_teacher, of_student = over(1.0, 0.0).variance, over(0.0, 1.0).variance
    shared = (over(1.0, 1.0).variance - of_teacher - of_student) / 2
    q = t_quantile(0.5 + CONFIDENCE / 2, over(-student / teacher, 1.0).freedom) ** 2
    a, b, c = teacher**2 - q * of_teacher, teacher * student - q * shared, student**2 - q * of_student
    if a <= 0:
        return None
    root, ratio = math.sqrt(max(0.0, b * b - a * c)), student / teacher
    return min((b - root) / a, ratio), max((b + root) / a, ratio)
