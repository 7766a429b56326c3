"""Adjusted p-values against their definitions and scipy; the smallest gap that n items show, against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from perplexity_lies.read.stats.estimate import detectable
from perplexity_lies.read.stats.multiple import benjamini_hochberg, holm
from perplexity_lies.read.stats.regimes import GAP_WEIGHTS, estimate, stratum

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES)
def test_benjamini_hochberg_equals_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(list(scipy.stats.false_discovery_control(p_values)))


@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_what_its_steps_reject(p_values: list[float], level: float) -> None:
    rejected: set[int] = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - rank) > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_four_in_five_intervals_exclude_zero_at_the_detectable_gap() -> None:
    rng, n = np.random.default_rng(0), 400
    draws = (np.arange(n) + 0.5) / n
    level = np.stack([draws > 0.1, draws < 0.9], axis=1).astype(float)
    smallest = detectable(estimate([stratum(level)], GAP_WEIGHTS))
    assert smallest is not None
    excluded = 0
    for _ in range(1000):
        draws = rng.random(n)
        lost, gained = 0.1 + smallest / 200, 0.1 - smallest / 200
        cells = np.stack([draws >= gained, draws <= 1 - lost], axis=1).astype(float)
        excluded += estimate([stratum(cells)], GAP_WEIGHTS).direction == -1
    assert 0.76 < excluded / 1000 < 0.84


def test_nothing_is_detectable_without_an_interval() -> None:
    assert detectable(estimate([stratum(np.ones((1, 2)))], GAP_WEIGHTS)) is None
