"""Quantiles of Student's t without scipy, which the read wing does not need.

t_quantile(0.975, 20)  ->  2.0859...
"""

from __future__ import annotations

import math
from functools import lru_cache

TERMS = 500
"""Most terms of the continued fraction; a few dozen suffice."""


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22, Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    tiny, fraction, c, d = 1e-300, 1.0, 1.0, 0.0
    for i in range(TERMS):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + term * d or tiny)
        c = 1 + term / c or tiny
        fraction *= c * d
        if abs(1 - c * d) < 1e-15:
            break
    return front * (fraction - 1)


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t with `freedom` degrees of freedom, for t >= 0 (DLMF 8.17; Abramowitz & Stegun 26.7.1)."""
    return 0.5 * _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


@lru_cache(maxsize=4096)
def t_quantile(level: float, freedom: float) -> float:
    """The t below which a share `level` in [0.5, 1) lies; `freedom` > 0 need not be whole. By bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - level and high < 1e12:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if high - low <= 1e-13 * high:
            break
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2
