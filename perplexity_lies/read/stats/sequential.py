"""A gate that looks after every batch and stops as soon as the verdict is certain at its level.

    look([0.03, 1.03, ...], span=(-0.97, 1.03), size=1500)  ->  Look(above=41.2, below=0.1, side=1)

Values are drawn in random order, each a unit's distance to the margin, so that the question is whether their mean lies above or
below 0. A gambler who bets against "the mean is at most 0" has a fair game only if that is so; her capital exceeds 1/alpha with
probability alpha at most, however often one looks (Ville 1939). The units of a suite are a finite population drawn without
replacement: what is left to draw must make up for what was drawn, so the fair price moves, and by the last unit the verdict is
certain (Waudby-Smith & Ramdas 2020, 2024; ALPHA, Stark 2023). Each stake is a share of the capital out of `STAKES`, and the
capital is the mean over them, which needs no guess of the variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perplexity_lies.read.stats.moments import Floats

STAKES = np.array([0.1, 0.25, 0.5, 0.9])
"""Shares of what may be staked at most: 1 would lose all at the first value of 0."""
ALPHA = 0.025
"""Chance of a false verdict on each side: that of a 95 % interval."""


def log_capital(values: Floats, null: float, size: int | None) -> Floats:
    """Log capital after each value of `values` [runs, n] in [0, 1] against "the mean is at most `null`"; [runs, n].

    `size` is how many values the finite population has, None for draws from an endless one.
    """
    runs, n = values.shape
    wealth = np.zeros((runs, len(STAKES)))
    total = np.zeros(runs)
    found = np.empty((runs, n))
    certain = np.zeros(runs, dtype=bool)
    for i in range(n):
        if size is None:
            price = np.full(runs, null)
        else:
            price = (size * null - total) / (size - i)
        certain |= price < -1e-12
        fair = (price > 1e-12) & (price < 1)
        over = np.where(fair, values[:, i] / np.where(fair, price, 1.0) - 1, 0.0)
        wealth += np.log1p(STAKES * over[:, None])
        total += values[:, i]
        if size is not None:
            certain |= total > size * null + 1e-9
        top = wealth.max(1)
        found[:, i] = np.where(certain, np.inf, top + np.log(np.exp(wealth - top[:, None]).mean(1)))
    return found


@dataclass(frozen=True, slots=True)
class Look:
    """What the values seen so far say."""

    above: float
    """Largest capital so far against "the mean is at most 0": an e-process's running maximum, whose inverse is a p-value."""
    below: float
    side: int
    """1 or -1 where the mean is certain, at the level, to lie on that side of 0; else 0."""


def look(values: Sequence[float] | Floats, span: tuple[float, float], size: int | None, alpha: float = ALPHA) -> Look:
    """`values` in the order drawn, each within `span` (low < 0 < high). Raises ValueError where one is not."""
    low, high = span
    drawn = np.asarray(values, dtype=np.float64)
    if not low < 0 < high or (drawn < low - 1e-9).any() or (drawn > high + 1e-9).any():
        raise ValueError(f"values must lie in {span}, which must hold 0")
    share = np.clip((drawn - low) / (high - low), 0, 1)[None]
    null = -low / (high - low)
    up = float(np.exp(min(700.0, log_capital(share, null, size).max(initial=0.0))))
    down = float(np.exp(min(700.0, log_capital(1 - share, 1 - null, size).max(initial=0.0))))
    return Look(up, down, int(up >= 1 / alpha) - int(down >= 1 / alpha))
