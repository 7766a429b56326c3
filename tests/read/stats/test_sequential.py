"""The sequential gate: false verdicts, what it saves, and its capital against the definition as a loop."""

import itertools
import math

import numpy as np
import pytest

from perplexity_lies.errors import UsageError
from perplexity_lies.read.sequence import draw, replay
from perplexity_lies.read.stats.multiple import e_benjamini_hochberg
from perplexity_lies.read.stats.regimes import CONTRAST_WEIGHTS, GAP_WEIGHTS, stratum
from perplexity_lies.read.stats.sequential import STAKES, log_capital, look


def suite(n, gained, lost):
    """[n, 2] scores: so many items gained and lost by the student."""
    cells = np.ones((n, 2))
    cells[:gained, 0], cells[gained : gained + lost, 1] = 0, 0
    return cells


@pytest.mark.parametrize("size", [None, 12])
def test_capital_equals_its_definition_as_a_loop(size):
    values = np.random.default_rng(0).random(12)
    found = log_capital(values[None], 0.45, size)[0]
    capital, total = np.ones(len(STAKES)), 0.0
    for i, value in enumerate(values):
        price = 0.45 if size is None else (size * 0.45 - total) / (size - i)
        if price < 0 or (size and total + value > size * 0.45):
            assert found[i:].min() == math.inf
            break
        if 0 < price < 1:
            capital *= 1 + STAKES * (value / price - 1)
        total += value
        assert found[i] == pytest.approx(math.log(capital.mean()))


def test_capital_is_fair_where_the_null_holds():
    """Over all orders of a population whose mean is the null, the mean capital is exactly 1 after every draw."""
    values = np.array(list(itertools.permutations([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])))
    capital = np.exp(log_capital(values, 0.5, 6))
    assert capital.mean(0) == pytest.approx(np.ones(6))


def test_false_verdicts_stay_under_the_level_with_a_look_after_every_item():
    """2,000 suites exactly on the margin: each side is called in 2.5 % at most (+- 1.05 %: three standard errors)."""
    rng, n = np.random.default_rng(2), 300
    differences = np.repeat([1.0, -1.0, 0.0], [15, 24, n - 39]) + 0.03  # the mean is exactly the margin of 3 points
    values = np.array([rng.permutation(differences) for _ in range(2000)])
    share, null = (values + 0.97) / 2, 0.485
    for side, price in ((share, null), (1 - share, 1 - null)):
        called = (log_capital(side, price, n)[:, :-1].max(1) >= math.log(40)).mean()
        assert called <= 0.025 + 0.0105


def test_the_last_item_settles_it():
    """A suite has an answer: whatever stands off the margin is decided, and rightly."""
    for gained, lost, side in ((0, 5, 1), (0, 7, -1), (4, 4, 1)):
        found = replay([stratum(suite(200, gained, lost))], GAP_WEIGHTS, margin_pp=3.0, batch=7)
        assert found.side == side


def test_a_clear_case_is_settled_by_a_third_of_the_items():
    asked = [replay([stratum(suite(1500, 15, 240))], GAP_WEIGHTS, margin_pp=3.0, seed=seed) for seed in range(20)]
    assert {found.side for found in asked} == {-1}
    assert np.median([found.items for found in asked]) <= 500


def test_units_average_to_the_distance_to_the_margin():
    """Two tasks of unequal size, one of whole clusters; and a hidden gap's span."""
    rng = np.random.default_rng(3)
    one, other = (rng.random((30, 2)) < 0.5).astype(float), (rng.random((90, 2)) < 0.7).astype(float)
    strata = [stratum(one), stratum(other, [str(i // 7) for i in range(90)], "sample")]
    units = draw(strata, GAP_WEIGHTS, 3.0, 0)
    gap = np.mean([(cells[:, 1] - cells[:, 0]).mean() for cells in (one, other)])
    assert units.values.mean() == pytest.approx(gap + 0.03)
    assert len(units.values) == 30 + 13 and sum(units.sizes) == 120
    assert (units.values >= units.span[0]).all() and (units.values <= units.span[1]).all()
    hidden = rng.random((40, 4))
    assert draw([stratum(hidden)], CONTRAST_WEIGHTS, 3.0, 0).span == pytest.approx((-1.97, 2.03))


def test_the_order_is_the_seeds_alone():
    strata = [stratum(suite(100, 5, 9))]
    assert draw(strata, GAP_WEIGHTS, 3.0, 4).names == draw(strata, GAP_WEIGHTS, 5.0, 4).names
    assert draw(strata, GAP_WEIGHTS, 3.0, 4).names != draw(strata, GAP_WEIGHTS, 3.0, 5).names


def test_of_a_population_it_may_end_unsettled():
    found = replay([stratum(suite(200, 5, 11))], GAP_WEIGHTS, margin_pp=3.0, target="population")
    assert found.side == 0 and found.items == 200


def test_values_outside_of_their_span_and_odd_margins_are_refused():
    with pytest.raises(ValueError, match="span|lie in"):
        look([2.0], (-0.97, 1.03), 10)
    with pytest.raises(UsageError, match="margin"):
        draw([stratum(suite(10, 1, 1))], GAP_WEIGHTS, 0, 0)


def test_e_values_are_adjusted_by_their_rank():
    assert e_benjamini_hochberg([100.0, 25.0, 1.0], 0.05) == [True, False, False]
    assert e_benjamini_hochberg([100.0, 30.0, 1.0], 0.05) == [True, True, False]
    assert e_benjamini_hochberg([1.0, 2.0], 0.05) == [False, False]
