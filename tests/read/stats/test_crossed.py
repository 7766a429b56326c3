"""Intervals over items and training seeds: against closed forms and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from perplexity_lies.read.stats.crossed import effect


def crossed(
    rng: np.random.Generator, seeds: int, items: int, seed_sd: float, item_sd: float, rest_sd: float
) -> np.ndarray:
    """Differences of true mean 0 with two crossed random effects."""
    by_seed, by_item = rng.normal(0, seed_sd, (seeds, 1)), rng.normal(0, item_sd, (1, items))
    return by_seed + by_item + rng.normal(0, rest_sd, (seeds, items))


def test_one_seed_is_the_t_interval_over_items() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.4, 50)
    found = effect(values[None])
    low, high = stats.t.interval(0.95, 49, values.mean(), values.std(ddof=1) / 50**0.5)
    assert (found.low_pp, found.high_pp) == pytest.approx((100 * low, 100 * high))
    assert found.seed_sd_pp == 0 and found.seeds == 1


def test_seeds_alone_vary_gives_the_t_interval_over_seeds() -> None:
    by_seed = np.array([0.01, 0.05, 0.03])
    found = effect(np.repeat(by_seed[:, None], 400, axis=1))
    low, high = stats.t.interval(0.95, 2, by_seed.mean(), by_seed.std(ddof=1) / 3**0.5)
    assert (found.low_pp, found.high_pp) == pytest.approx((100 * low, 100 * high))
    assert found.by_seed_pp == pytest.approx((1, 5, 3))


def test_nothing_varies_gives_a_point() -> None:
    found = effect(np.full((3, 10), 0.25))
    assert (found.pp, found.low_pp, found.high_pp) == (25, 25, 25)


@pytest.mark.parametrize(
    ("seed_sd", "item_sd", "rest_sd"), [(0.03, 0.3, 0.3), (0.0, 0.3, 0.3), (0.05, 0.0, 0.1), (0.02, 0.5, 0.1)]
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    seed_sd: float, item_sd: float, rest_sd: float, seeds: int
) -> None:
    rng, covered, rounds = np.random.default_rng(7), 0, 600
    for _ in range(rounds):
        found = effect(crossed(rng, seeds, 200, seed_sd, item_sd, rest_sd))
        covered += found.low_pp <= 0 <= found.high_pp
    assert covered / rounds > 0.93


def test_items_alone_would_cover_far_too_seldom() -> None:
    """Why seeds are in the interval: without them the same data are called an effect again and again."""
    rng, with_seeds, alone = np.random.default_rng(3), 0, 0
    for _ in range(300):
        table = crossed(rng, 3, 200, 0.05, 0.2, 0.2)
        found, mean = effect(table), effect(table.mean(0)[None])
        with_seeds += found.low_pp <= 0 <= found.high_pp
        alone += mean.low_pp <= 0 <= mean.high_pp
    assert with_seeds / 300 > 0.9 and alone / 300 < 0.75


def test_one_item_is_refused() -> None:
    with pytest.raises(ValueError, match="two items"):
        effect(np.zeros((3, 1)))
