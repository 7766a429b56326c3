"""Scores, gaps and hidden gaps with paired bootstrap intervals: arrays in, numbers out.

Gap: student minus teacher on one rung, paired by item. Hidden gap: generation gap minus log-likelihood gap, over items
that have all four scores (a difference in differences). Both are contrasts of mean scores, so one set of
resamples of the items serves all of them. Paired differences and clustering by subject follow Miller, "Adding Error
Bars to Evals" (arXiv:2411.00640, sections 2.2 and 4.2), with a percentile bootstrap (Efron & Tibshirani 1993, chapter
13) in place of its normal interval. The overall number is the unweighted mean over tasks, resampled within each task.

A percentile interval over items that never disagree is a point. It is replaced by a bound in the manner of the rule of
three: had more than -ln(0.05)/n of the items differed, n draws would have met one with 95 % confidence.

Simulated coverage of the 95 % interval of a gap: 96 % at n = 150 (90 against 70 % right), but 90 % at n = 220 near the
ceiling (99.5 against 99 %), where a handful of items decide, and 84, 91 and 94 % with 4, 10 and 30 clusters of 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perplexity_lies.read.stats.estimate import CONFIDENCE, NO_INTERVAL, Estimate, percent

Floats = NDArray[np.float64]

RESAMPLES = 10_000
BLOCK_CELLS = 2_000_000
"""Resample counts held in memory at once (8 bytes each)."""
GAP_WEIGHTS = (-1.0, 1.0)
"""Weights of the columns (baseline, student)."""
CONTRAST_WEIGHTS = (1.0, -1.0, -1.0, 1.0)
"""Weights of the columns (baseline, student on one rung; baseline, student on the other): second gap minus first."""

BOOTSTRAP = "bootstrap"
CLUSTER_BOOTSTRAP = "cluster bootstrap"
RULE_OF_THREE = "rule of three"


@dataclass(frozen=True, slots=True)
class Stratum:
    """One task's scores and the mean scores of its resamples."""

    cells: Floats
    """[n, k] scores in [0, 1], seeds averaged."""
    draws: Floats
    """[resamples, k] mean scores of each resample; empty where `units` < 2."""
    units: int
    clustered: bool


def resample(
    cells: Floats, clusters: Sequence[str] = (), *, seed: Sequence[int] = (0,), resamples: int = RESAMPLES
) -> Stratum:
    """Bootstrap means of `cells` [n, k], by item, or by cluster where `clusters` [n] names more than one.

    A resample of n units is a multinomial draw of how often each unit is taken. Units with equal rows are drawn
    together, which changes no distribution and makes 0/1 scores nearly free. Groups keep the order in which they first
    appear, so that swapping columns swaps the answer exactly.
    """
    cells = np.asarray(cells, dtype=np.float64)
    clustered = len(set(clusters)) > 1
    if clustered:
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        sizes: Floats = np.bincount(member).astype(np.float64)
        sums: Floats = np.stack([np.bincount(member, weights=column) for column in cells.T], axis=1)
    else:
        sizes, sums = np.ones(len(cells)), cells
    units = len(sizes)
    if units < 2:
        return Stratum(cells, np.empty((0, cells.shape[1])), units, clustered)

    found, first, often = np.unique(np.column_stack([sums, sizes]), axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    rows, shares = found[order], often[order] / units
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // len(rows))
    draws = np.empty((resamples, cells.shape[1]))
    for start in range(0, resamples, block):
        taken = rng.multinomial(units, shares, size=min(block, resamples - start))
        totals = taken @ rows
        draws[start : start + block] = totals[:, :-1] / totals[:, -1:]
    return Stratum(cells, draws, units, clustered)


def estimate(strata: Sequence[Stratum], contrast: Sequence[float]) -> Estimate:
    """`contrast` of the mean scores, averaged over strata with equal weights, in percent.

    One stratum gives a task's number, all strata the overall one. A stratum of fewer than two units has no spread to
    offer, so there is no interval then. Raises ValueError where there is nothing to estimate from.
    """
    if not strata or any(len(stratum.cells) == 0 for stratum in strata):
        raise ValueError("an estimate needs at least one stratum, and every stratum at least one item")
    weights = np.asarray(contrast, dtype=np.float64)
    values = [float(stratum.cells.mean(axis=0) @ weights) for stratum in strata]
    value, n, units = float(np.mean(values)), sum(len(s.cells) for s in strata), sum(s.units for s in strata)
    if any(stratum.units < 2 for stratum in strata):
        return Estimate(value=percent(value), low=None, high=None, n=n, units=units, method=NO_INTERVAL)

    draws = np.mean([stratum.draws @ weights for stratum in strata], axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(bound) for bound in np.quantile(draws, (tail, 1 - tail)))
    method = CLUSTER_BOOTSTRAP if any(stratum.clustered for stratum in strata) else BOOTSTRAP
    if float(np.ptp(draws)) < 1e-12:
        low, high = _rule_of_three(values, min(stratum.units for stratum in strata), weights)
        method = RULE_OF_THREE
    return Estimate(value=percent(value), low=percent(low), high=percent(high), n=n, units=units, method=method)


def _rule_of_three(values: Sequence[float], units: int, weights: Floats) -> tuple[float, float]:
    """Bounds where no unit of any stratum differs from the others of its stratum.

    With the rarest stratum of `units`, the mean over T strata of the share that differs is below -ln(0.05)/(units T)
    with 95 % confidence; each such unit can move the contrast at most to its end of the scale.
    """
    share = min(1.0, -math.log(1 - CONFIDENCE) / (units * len(values)))
    bottom, top = float(weights[weights < 0].sum()), float(weights[weights > 0].sum())
    value = float(np.mean(values))
    return max(bottom, value - share * (max(values) - bottom)), min(top, value + share * (top - min(values)))
