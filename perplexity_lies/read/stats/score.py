"""Score intervals for 0/1 scores: one share (Wilson), and the difference of two paired shares (Tango).

    tango(1, 7, 21)  ->  (-0.517, -0.026)

Both invert a score test: the interval holds every value that the test, with the standard error of *that* value, would not
reject. They need no disagreement to be honest: after 54 items without one, Tango's says +-0.066.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

from perplexity_lies.read.stats.estimate import CONFIDENCE


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(right: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a share, in [0, 1] (Wilson 1927; Brown, Cai & DasGupta 2001, Statistical Science 16:101)."""
    z = _z(confidence)
    share, weight = right / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == n else middle + half


def tango_statistic(gained: int, lost: int, n: int, gap: float) -> float:
    """Score statistic of the hypothesis that the true gap is `gap`, in (-1, 1) (Tango 1998, Statistics in Medicine 17:891).

    Its standard error takes the most likely share of lost items under that hypothesis (his equation 5).
    """
    b = -gained - lost + (2 * n - gained + lost) * gap
    c = -lost * gap * (1 - gap)
    share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    off, variance = gained - lost - n * gap, n * (2 * share + gap * (1 - gap))
    if variance <= 0:
        return math.copysign(math.inf, off) if off else 0.0
    return off / math.sqrt(variance)


@lru_cache(maxsize=65536)
def tango(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of (gained - lost) / n, in [-1, 1], from paired 0/1 scores. By bisection.

    `gained` items were right on the second side alone, `lost` on the first alone, of `n` items.
    """
    z = _z(confidence)
    return -_upper(lost, gained, n, z), _upper(gained, lost, n, z)


def _upper(gained: int, lost: int, n: int, z: float) -> float:
    low, high = (gained - lost) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tango_statistic(gained, lost, n, middle) > -z else (low, middle)
    return high
