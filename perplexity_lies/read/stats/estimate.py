"""`Estimate`: a number with its 95 % interval, in percent or percentage points. Every estimator returns one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from perplexity_lies.checked import Checked

CONFIDENCE = 0.95
POWER = 0.8
"""Chance with which a detectable gap is found."""
DECIMALS = 6
"""Decimals kept of a percentage: coarser than the noise of float summation, so that equal data gives equal output."""

NO_INTERVAL = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate(Checked):
    """A score (percent) or a gap (percentage points) with its 95 % interval."""

    value: float
    low: float | None
    """None where the regime has no interval; `why` says so."""
    high: float | None
    n: int
    """Items."""
    units: int
    """What was drawn: items, or clusters where those are a sample."""
    apart: int
    """Items off the commonest value: for a gap those on which the sides disagree, as a rule. 0: the interval is a bound."""
    method: str
    """The estimator's name (`regimes`), such as `Tango score`; `none` where there is no interval."""
    why: str = ""
    """Why there is no interval."""

    @property
    def bounded(self) -> bool:
        """Whether no item stands apart, so that the interval only bounds what n items cannot exclude."""
        return self.apart == 0 and self.low is not None

    @property
    def direction(self) -> int:
        """1 where the interval lies above zero, -1 where below, 0 where it holds zero or there is none."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def percent(share: float) -> float:
    """A share as a percentage, rounded to `DECIMALS`; never -0.0."""
    return round(100 * share, DECIMALS) + 0.0


def units_needed(found: Estimate, threshold: float) -> int | None:
    """Units (items, or clusters) at which the interval of `found` would just clear `threshold`, if its value held.

    The half width shrinks with the square root of the units. None where the value stands on the threshold, or there is
    no interval to extrapolate from.
    """
    if found.low is None or found.high is None or found.value == threshold:
        return None
    half_width = found.value - found.low if found.value > threshold else found.high - found.value
    return max(2, math.ceil(found.units * (half_width / abs(found.value - threshold)) ** 2))


def detectable(found: Estimate) -> float | None:
    """The smallest true gap, in the unit of `found`, that as many units would tell from zero in `POWER` of comparisons.

    From the interval's mean half width, by the normal approximation (Miller, arXiv:2411.00640, section 5): half width times
    (z_0.975 + z_0.8) / z_0.975. None where there is no interval.
    """
    if found.low is None or found.high is None:
        return None
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    return (found.high - found.low) / 2 * (z + NormalDist().inv_cdf(POWER)) / z
