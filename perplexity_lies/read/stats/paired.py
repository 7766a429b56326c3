"""Two checkpoints on the same items: how many items changed, and whether that could be chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def flips(baseline: NDArray[np.float64], student: NDArray[np.float64]) -> tuple[int, int]:
    """Items on which the student scores higher (gained) and lower (lost) than the baseline; arrays [n]."""
    return int(np.count_nonzero(student > baseline)), int(np.count_nonzero(student < baseline))


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: a sign test on the items that flipped (McNemar 1947, exact binomial form).

    Treats items as independent, also where the intervals are clustered. 1.0 where nothing flipped.
    """
    n, fewer = gained + lost, min(gained, lost)
    term, tail = 1, 1
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)
