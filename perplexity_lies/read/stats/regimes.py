"""Which interval where: a task's paired scores -> an estimate whose method suits its regime and is named in it.

    estimate([stratum(cells)], GAP_WEIGHTS)  ->  Estimate(value=-2.5, low=-4.8, high=-0.5, method="Tango score", ...)

Gap: student minus teacher on one rung, paired by item. Hidden gap: generation gap minus log-likelihood gap, over items
that have all four scores (a difference in differences). Both are contrasts of mean scores. Paired differences and
clustering follow Miller, "Adding Error Bars to Evals" (arXiv:2411.00640, sections 2.2 and 4.2); the regimes are:

* one task of 0/1 scores, no clusters: Tango's score interval for a gap, Wilson's for a score (`score`);
* one task of other values (hidden gaps, means over seeds, graded scores): t; below `ENOUGH_APART` items that stand apart
  a pseudo-item at each end of the scale is added;
* clusters that are a sample of more such: CR2 with Bell-McCaffrey degrees of freedom; below `FEWEST_CLUSTERS` nothing we
  know has the coverage that it states, so there is no interval;
* clusters that are the benchmark (`BENCHMARK`): stratified by cluster;
* the mean over tasks: Welch-Satterthwaite over the tasks' own variances.

Measured coverage of each: `benchmarks/coverage.py`, `benchmarks/results/coverage.json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perplexity_lies.read.stats.estimate import CONFIDENCE, NO_INTERVAL, Estimate, percent
from perplexity_lies.read.stats.moments import (
    Floats,
    Moments,
    of_clusters,
    of_items,
    of_strata,
    of_tasks,
    with_pseudo_items,
)
from perplexity_lies.read.stats.score import tango, wilson
from perplexity_lies.read.stats.student_t import t_quantile

GAP_WEIGHTS = (-1.0, 1.0)
"""Weights of the columns (baseline, student)."""
CONTRAST_WEIGHTS = (1.0, -1.0, -1.0, 1.0)
"""Weights of the columns (baseline, student on one rung; baseline, student on the other): second gap minus first."""

Clusters = Literal["sample", "benchmark"]
SAMPLE: Clusters = "sample"
"""The subjects stand for others of their kind: another benchmark could have had other ones."""
BENCHMARK: Clusters = "benchmark"
"""The subjects are what is asked about, all of them: another drawing would have the same ones."""

ENOUGH_APART = 12
"""Items off the commonest value from which a t interval of items needs no pseudo-items."""
FEWEST_CLUSTERS = 10
"""Clusters from which CR2 is trusted."""

TANGO, WILSON = "Tango score", "Wilson score"
STUDENT_T, PSEUDO_ITEMS = "t", "t with pseudo-items"
CR2, PSEUDO_CLUSTERS = "CR2, Bell-McCaffrey t", "t with pseudo-clusters"
STRATIFIED = "stratified t"
WELCH = "Welch-Satterthwaite t"


@dataclass(frozen=True, slots=True)
class Stratum:
    """One task's paired scores."""

    cells: Floats
    """[n, k] scores in [0, 1], seeds averaged."""
    member: NDArray[np.intp] | None
    """[n] number of each item's cluster; None where there are none."""
    clusters: Clusters

    @property
    def sampled(self) -> bool:
        """Whether clusters, not items, were drawn."""
        return self.member is not None and self.clusters == SAMPLE

    @property
    def units(self) -> int:
        """What was drawn: items, or clusters that are a sample."""
        return int(self.member.max()) + 1 if self.member is not None and self.sampled else len(self.cells)


def stratum(cells: Floats, subjects: Sequence[str] = (), clusters: Clusters = SAMPLE) -> Stratum:
    """Scores [n, k] with their subjects [n]; a single subject, or none, makes no clusters."""
    member = np.unique(np.asarray(subjects), return_inverse=True)[1] if len(set(subjects)) > 1 else None
    return Stratum(np.asarray(cells, dtype=np.float64), member, clusters)


def estimate(strata: Sequence[Stratum], contrast: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """`contrast` of the mean scores, averaged over strata with equal weights, in percent; its interval at `confidence`.

    One stratum gives a task's number, all strata the overall one. Where a stratum's regime has no interval there is none,
    and `why` says so. Raises ValueError where there is nothing to estimate from.
    """
    if not strata or any(len(one.cells) == 0 for one in strata):
        raise ValueError("an estimate needs at least one stratum, and every stratum at least one item")
    weights = np.asarray(contrast, dtype=np.float64)
    values = [one.cells @ weights for one in strata]
    value = math.fsum(float(column.mean()) for column in values) / len(strata)
    why = next((why for one in strata if (why := why_none(one))), "")
    low = high = None
    method = NO_INTERVAL
    if not why:
        if len(strata) == 1:
            low, high, method = _of_task(strata[0], values[0], weights, confidence)
        else:
            every = [_moments(one, column, weights)[0] for one, column in zip(strata, values, strict=True)]
            low, high, method = *_t_interval(of_tasks(every), confidence), WELCH
        low = percent(max(min(low, value), float(weights[weights < 0].sum())))
        high = percent(min(max(high, value), float(weights[weights > 0].sum())))
    return Estimate(
        value=percent(value),
        low=low,
        high=high,
        n=sum(len(one.cells) for one in strata),
        units=sum(one.units for one in strata),
        apart=sum(apart(column) for column in values),
        method=method,
        why=why,
    )


def apart(values: Floats) -> int:
    """Items off the commonest value: those on which the sides disagree, as a rule."""
    return len(values) - int(np.unique(values.round(9), return_counts=True)[1].max())


def why_none(one: Stratum) -> str:
    """Why its regime has no interval; empty where it has one."""
    if len(one.cells) < 2:
        return "a single item has no spread"
    if one.sampled and one.units < FEWEST_CLUSTERS:
        return f"{one.units} clusters are too few: an interval needs {FEWEST_CLUSTERS}"
    return ""


def _t_interval(found: Moments, confidence: float) -> tuple[float, float]:
    half = t_quantile(0.5 + confidence / 2, found.freedom) * math.sqrt(found.variance)
    return found.centre - half, found.centre + half


def _of_task(one: Stratum, values: Floats, weights: Floats, confidence: float) -> tuple[float, float, str]:
    off = apart(values)
    strata_tell = one.member is not None and off >= ENOUGH_APART
    if not (one.sampled or strata_tell) and np.isin(one.cells, (0.0, 1.0)).all():
        if tuple(weights) == GAP_WEIGHTS:
            return *tango(int((values > 0).sum()), int((values < 0).sum()), len(values), confidence), TANGO
        if np.count_nonzero(weights) == 1:
            return *wilson(int(values.sum()), len(values), confidence), WILSON
    found, method = _moments(one, values, weights)
    return *_t_interval(found, confidence), method


def _moments(one: Stratum, values: Floats, weights: Floats) -> tuple[Moments, str]:
    ends = (0.0, 1.0) if np.count_nonzero(weights) == 1 else (-1.0, 1.0)
    off = apart(values)
    if one.member is not None and one.sampled:
        if off == 0:
            # Whole clusters may have been missed: each counts as one item.
            return with_pseudo_items(np.full(one.units, values[0]), ends), PSEUDO_CLUSTERS
        if off < ENOUGH_APART:
            member = np.concatenate([one.member, [one.units, one.units + 1]])
            return of_clusters(np.concatenate([values, ends]), member), PSEUDO_ITEMS
        return of_clusters(values, one.member), CR2
    if off < ENOUGH_APART:
        return with_pseudo_items(values, ends), PSEUDO_ITEMS
    if one.member is not None:
        return of_strata(values, one.member), STRATIFIED
    return of_items(values), STUDENT_T
