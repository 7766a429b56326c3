"""A mean, its variance and the degrees of freedom of that variance: for items, for strata and for clusters.

Each function takes the values of a task's items and returns `Moments`, from which `regimes` makes a t interval for one
task and a Welch-Satterthwaite interval for several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """What an interval of a mean needs."""

    centre: float
    """Middle of the interval; the mean itself, but where pseudo-items pull it."""
    variance: float
    """Squared standard error."""
    freedom: float


def of_items(values: Floats) -> Moments:
    """Independent items, two or more [n]: the textbook mean."""
    n = len(values)
    return Moments(float(values.mean()), float(values.var(ddof=1)) / n, n - 1)


def with_pseudo_items(values: Floats, ends: tuple[float, float]) -> Moments:
    """Independent items and one made-up item at each of `ends`, so that few disagreements are not taken for certainty.

    As Agresti & Min 2005 (Statistics in Medicine 24:729) add pseudo-counts to a paired table.
    """
    return of_items(np.concatenate([values, ends]))


def of_strata(values: Floats, member: NDArray[np.intp]) -> Moments:
    """Items drawn within strata whose shares are fixed: only the spread within each counts (Cochran 1977, eq. 5.7).

    Strata of one item are collapsed into one (his section 5A.12). Degrees of freedom by Satterthwaite (1946). Where no
    stratum has two items, the items are taken as independent.
    """
    sizes = np.bincount(member)
    single = sizes[member] == 1
    if single.all():
        return of_items(values)
    if single.sum() == 1:  # A lone single joins the largest stratum.
        member = np.where(single, np.argmax(sizes), member)
    else:
        member = np.where(single, len(sizes), member)
    _, member = np.unique(member, return_inverse=True)
    sizes = np.bincount(member)
    means = np.bincount(member, weights=values) / sizes
    spread = np.bincount(member, weights=(values - means[member]) ** 2) / (sizes - 1)
    parts = sizes * spread / len(values) ** 2
    variance, rest = float(parts.sum()), float((parts**2 / (sizes - 1)).sum())
    freedom = variance**2 / rest if rest > 0 else float(len(values) - len(sizes))
    return Moments(float(values.mean()), variance, freedom)


def of_clusters(values: Floats, member: NDArray[np.intp]) -> Moments:
    """Items in clusters that are a sample, two or more: CR2 variance, Bell-McCaffrey degrees of freedom.

    Bell & McCaffrey 2002 (Survey Methodology 28:169), with items independent as the working model. For a mean the matrices
    have a closed form: with w the clusters' shares of the items and r their sums of residuals over n, the variance is
    sum r^2 / (1 - w), and the degrees of freedom 1 / (sum w^2 + (sum a^2)^2 - sum a^4), where a^2 = w^2 / (1 - w).
    """
    n = len(values)
    mean = float(values.mean())
    shares = np.bincount(member) / n
    sums = np.bincount(member, weights=values - mean) / n
    squares = shares**2 / (1 - shares)
    rest = float((shares**2).sum() + squares.sum() ** 2 - (squares**2).sum())
    return Moments(mean, float((sums**2 / (1 - shares)).sum()), 1 / rest)


def of_tasks(tasks: list[Moments]) -> Moments:
    """Unweighted mean over independent tasks (Welch 1947, Satterthwaite 1946)."""
    parts = [task.variance / len(tasks) ** 2 for task in tasks]
    rest = math.fsum(part**2 / task.freedom for part, task in zip(parts, tasks, strict=True))
    variance = math.fsum(parts)
    freedom = variance**2 / rest if rest > 0 else min(task.freedom for task in tasks)
    return Moments(math.fsum(task.centre for task in tasks) / len(tasks), variance, freedom)
