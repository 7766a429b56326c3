"""The effect of one training choice, with its uncertainty over items *and* training seeds.

    effect(differences)  ->  Effect(pp=3.1, low_pp=0.4, high_pp=5.8, ...)

Scores are a table of seeds by items, the same items for every seed. Two crossed random effects without replication
(Searle, Casella & McCulloch, Variance Components, 1992, section 4.3): the variance of the grand mean is estimated by
MS_seeds/(SI) + MS_items/(SI) - MS_rest/(SI), degrees of freedom by Satterthwaite (1946). With three seeds the interval is
wide, and should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perplexity_lies.checked import Checked
from perplexity_lies.read.stats.estimate import CONFIDENCE
from perplexity_lies.read.stats.student_t import t_quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Checked):
    """A mean difference in percentage points."""

    pp: float
    low_pp: float
    high_pp: float
    """End of the 95 % interval; equals `pp` when nothing varies."""
    seeds: int
    items: int
    seed_sd_pp: float
    """Standard deviation of the difference between training seeds; 0 with one seed, whose interval is over items alone."""
    by_seed_pp: tuple[float, ...]

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, otherwise 0."""
        return (self.low_pp > 0) - (self.high_pp < 0)


def effect(differences: NDArray[np.float64]) -> Effect:
    """The mean of `differences` [seeds, items] (scores of one arm minus another's, in [-1, 1]) and its interval.

    Raises ValueError on fewer than two items.
    """
    seeds, items = differences.shape
    if items < 2:
        raise ValueError("an interval needs at least two items")
    mean = float(differences.mean())
    by_seed, by_item = differences.mean(1), differences.mean(0)
    item_part = float(by_item.var(ddof=1)) / items
    variance, freedom = item_part, float(items - 1)
    if seeds > 1:
        seed_part = float(by_seed.var(ddof=1)) / seeds
        rest = differences - by_seed[:, None] - by_item[None] + mean
        rest_part = float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / (seeds * items)
        variance = max(seed_part + item_part - rest_part, seed_part, item_part)
        spread = seed_part**2 / (seeds - 1) + item_part**2 / (items - 1)
        freedom = variance**2 / spread if spread > 0 else freedom
    half = t_quantile(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(variance)
    return Effect(
        pp=100 * mean,
        low_pp=100 * (mean - half),
        high_pp=100 * (mean + half),
        seeds=seeds,
        items=items,
        seed_sd_pp=100 * float(by_seed.std(ddof=1)) if seeds > 1 else 0.0,
        by_seed_pp=tuple(float(100 * value) for value in by_seed),
    )
