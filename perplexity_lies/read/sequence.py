"""The sequential gate on paired scores: in which order units are drawn, and where it would have stopped.

    replay([stratum(cells)], GAP_WEIGHTS, margin_pp=3, seed=0, batch=25)  ->  Replay(side=1, items=300, of=1500, ...)

`target="suite"`: what would the whole suite say of this student? Units are drawn without replacement; the last settles it.
`target="population"`: the items stand for others of their kind; it may end without a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perplexity_lies.errors import UsageError
from perplexity_lies.read.stats.moments import Floats
from perplexity_lies.read.stats.regimes import Stratum
from perplexity_lies.read.stats.sequential import ALPHA, look

Frame = Literal["suite", "population"]
BATCH = 25


@dataclass(frozen=True, slots=True)
class Units:
    """What is drawn one by one: items, or whole clusters where those are a sample; in drawing order."""

    values: Floats
    """[K] each unit's part in the distance to the margin: their mean is contrast + margin, of the unweighted mean over tasks."""
    sizes: tuple[int, ...]
    """Items of each unit."""
    names: tuple[tuple[int, int], ...]
    """(stratum, item or cluster) of each unit."""
    span: tuple[float, float]
    """What a unit's value can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Where the gate stopped."""

    side: int
    """1: within the margin, -1: beyond it, 0: not certain by the last unit."""
    items: int
    """Items that it asked."""
    of: int
    looks: int
    above: float
    below: float
    """Evidence (e-values) for each side."""


def draw(strata: Sequence[Stratum], contrast: Sequence[float], margin_pp: float, seed: int) -> Units:
    """All units of all tasks in a seeded random order. Raises UsageError where the margin is not in (0, 100)."""
    if not 0 < margin_pp < 100:
        raise UsageError(f"a margin of {margin_pp:g} pp cannot be judged", found="it must lie in (0, 100)", mend="3")
    weights, margin = np.asarray(contrast, dtype=np.float64), margin_pp / 100
    reach = float(weights[weights > 0].sum())
    every = sum(one.units for one in strata)
    values: list[float] = []
    sizes: list[int] = []
    names: list[tuple[int, int]] = []
    widest = 0.0
    for i, one in enumerate(strata):
        over = one.cells @ weights + margin
        member = one.member if one.member is not None and one.sampled else np.arange(len(over))
        share = every / (len(strata) * len(over))
        sums, counts = np.bincount(member, weights=over) * share, np.bincount(member)
        values += sums.tolist()
        sizes += counts.tolist()
        names += [(i, unit) for unit in range(len(counts))]
        widest = max(widest, share * float(counts.max()))
    order = np.random.default_rng(seed).permutation(len(values))
    return Units(
        values=np.array(values)[order],
        sizes=tuple(sizes[i] for i in order),
        names=tuple(names[i] for i in order),
        span=(widest * (margin - reach), widest * (margin + reach)),
    )


def replay(
    strata: Sequence[Stratum],
    contrast: Sequence[float],
    *,
    margin_pp: float,
    seed: int = 0,
    batch: int = BATCH,
    target: Frame = "suite",
    alpha: float = ALPHA,
) -> Replay:
    """Draw units in batches and stop at the first look that is certain, each side at `alpha`. Raises as `draw`."""
    units = draw(strata, contrast, margin_pp, seed)
    size = len(units.values) if target == "suite" else None
    looks = math.ceil(len(units.values) / batch)
    for at in range(1, looks + 1):
        seen = min(at * batch, len(units.values))
        found = look(units.values[:seen], units.span, size, alpha)
        if found.side or at == looks:
            break
    return Replay(
        side=found.side,
        items=sum(units.sizes[:seen]),
        of=sum(units.sizes),
        looks=at,
        above=found.above,
        below=found.below,
    )
