"""p-values of several tasks, adjusted for their number.

holm([0.01, 0.04, 0.03])                ->  [0.03, 0.06, 0.06]
benjamini_hochberg([0.01, 0.04, 0.03])  ->  [0.03, 0.04, 0.04]
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that those below 5 % hold one false alarm or more in 5 % of comparisons at most.

    Holm 1979, Scandinavian Journal of Statistics 6:65; valid however the tasks depend on each other.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that of those below 5 % a share of 5 % is expected to be false at most.

    Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57:289; tasks independent or positively dependent.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    adjusted, smallest = [0.0] * len(p_values), 1.0
    for place, i in enumerate(order):
        smallest = min(smallest, p_values[i] * len(order) / (len(order) - place))
        adjusted[i] = smallest
    return adjusted


def e_benjamini_hochberg(e_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses to reject so that of those a share of `alpha` is expected to be false at most.

    e-BH (Wang & Ramdas 2022, Journal of the Royal Statistical Society B 84:822); however the e-values depend on each other.
    """
    order = sorted(range(len(e_values)), key=e_values.__getitem__, reverse=True)
    enough = [rank for rank, i in enumerate(order, 1) if rank * e_values[i] >= len(order) / alpha]
    rejected = set(order[: max(enough, default=0)])
    return [i in rejected for i in range(len(e_values))]
