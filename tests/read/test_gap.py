"""Estimators against their definitions written out, scipy, closed forms and simulation."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from perplexity_lies.read.stats.bootstrap import (
    BOOTSTRAP,
    CLUSTER_BOOTSTRAP,
    CONTRAST_WEIGHTS,
    GAP_WEIGHTS,
    RULE_OF_THREE,
    estimate,
    resample,
)
from perplexity_lies.read.stats.estimate import NO_INTERVAL, Estimate, units_needed
from perplexity_lies.read.stats.paired import flips, mcnemar_p

SCORE = (1.0,)


def binary(seed, n, *chances):
    """[n, k] 0/1 scores, column j right with chance `chances[j]`."""
    return (np.random.default_rng(seed).random((n, len(chances))) < np.array(chances)).astype(float)


def gap_of(cells, clusters=(), **more):
    return estimate([resample(cells, clusters, **more)], GAP_WEIGHTS)


def percentile(values, share):
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("clustered", [False, True])
def test_equals_its_definition_as_a_loop(clustered):
    cells = binary(1, 23, 0.9, 0.6)
    clusters = [f"s{i % 5}" for i in range(23)] if clustered else []
    found = gap_of(cells, clusters, seed=(3, 4), resamples=250)

    # The units: lists of (teacher, student) rows. Equal units form a group, in order of first appearance.
    names = sorted(set(clusters)) if clustered else range(23)
    units = [[row for row, name in zip(cells, clusters or names, strict=True) if name == which] for which in names]
    groups: dict[tuple[float, ...], list[list[np.ndarray]]] = {}
    for unit in units:
        key = (sum(row[0] for row in unit), sum(row[1] for row in unit), len(unit))
        groups.setdefault(key, []).append(unit)
    rng = np.random.default_rng((3, 4))
    draws = []
    for counts in rng.multinomial(len(units), [len(same) / len(units) for same in groups.values()], size=250):
        rows = [
            row for same, count in zip(groups.values(), counts, strict=True) for _ in range(count) for row in same[0]
        ]
        draws.append(statistics.fmean(100 * (row[1] - row[0]) for row in rows))

    assert found.value == pytest.approx(100 * statistics.fmean(row[1] - row[0] for row in cells))
    assert found.low == pytest.approx(percentile(draws, 0.025))
    assert found.high == pytest.approx(percentile(draws, 0.975))
    assert (found.n, found.units) == (23, len(units))


def test_blocks_of_resamples_add_up(monkeypatch):
    cells = binary(2, 40, 0.9, 0.7)
    monkeypatch.setattr("perplexity_lies.read.stats.bootstrap.BLOCK_CELLS", 7)
    draws = resample(cells, resamples=101).draws
    assert draws.shape == (101, 2)
    assert draws.std(axis=0).min() > 0


def test_agrees_with_scipy_bootstrap():
    cells = binary(5, 400, 0.9, 0.7)
    found = gap_of(cells)
    reference = scipy.stats.bootstrap(
        (100 * cells[:, 0], 100 * cells[:, 1]), lambda t, s, axis: np.mean(s - t, axis=axis), paired=True,
        vectorized=True, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    # A 2.5 % quantile of 10,000 draws has a standard error of 0.027 of the draws' own; two of them 0.038; four sigma.
    tolerance = 0.15 * reference.standard_error + 100 / 400
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=tolerance)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=tolerance)


def test_approaches_the_normal_interval_where_items_are_many():
    cells = binary(6, 20_000, 0.9, 0.7, 0.8, 0.3)
    found = estimate([resample(cells)], CONTRAST_WEIGHTS)
    contrast = 100 * (cells[:, 3] - cells[:, 2] - cells[:, 1] + cells[:, 0])
    half = 1.959964 * contrast.std(ddof=1) / math.sqrt(len(contrast))
    assert found.value == pytest.approx(contrast.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.06)
    assert found.value - found.low == pytest.approx(half, rel=0.06)


@pytest.mark.parametrize("clusters", [[], [f"s{i // 10}" for i in range(150)]])
def test_swapping_teacher_and_student_flips_the_sign(clusters):
    cells = binary(7, 150, 0.9, 0.7)
    one, other = gap_of(cells, clusters), gap_of(cells[:, ::-1], clusters)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))


def test_clusters_of_equal_items_widen_by_the_root_of_their_size():
    once = binary(8, 60, 0.9, 0.5)
    cells = np.repeat(once, 9, axis=0)
    apart, together = gap_of(cells), gap_of(cells, [f"s{i // 9}" for i in range(540)])
    assert (apart.method, together.method, together.units) == (BOOTSTRAP, CLUSTER_BOOTSTRAP, 60)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(3, rel=0.1)


def test_one_subject_is_no_cluster():
    assert gap_of(binary(8, 60, 0.9, 0.5), ["all"] * 60).method == BOOTSTRAP


def test_interval_covers_the_truth_as_often_as_it_says():
    """500 simulated comparisons, n = 150, true gap -20 pp; 95 % +- 3 %, three binomial standard errors."""
    covered = 0
    for seed in range(500):
        found = gap_of(binary(1000 + seed, 150, 0.9, 0.7), seed=(seed,), resamples=1000)
        covered += found.low <= -20 <= found.high
    assert 0.92 <= covered / 500 <= 0.98


def test_overall_is_the_unweighted_mean_of_tasks():
    small, large = binary(9, 30, 0.9, 0.5), binary(10, 900, 0.9, 0.8)
    found = estimate([resample(small, seed=(1,)), resample(large, seed=(2,))], GAP_WEIGHTS)
    means = [100 * (cells[:, 1] - cells[:, 0]).mean() for cells in (small, large)]
    variances = [(100 * (c[:, 1] - c[:, 0])).var(ddof=1) / len(c) for c in (small, large)]
    assert found.value == pytest.approx(statistics.fmean(means))
    half = 1.96 * math.sqrt(sum(variances)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert found.n == 930


@pytest.mark.parametrize("n", [3, 10, 57, 220, 5000])
def test_items_that_never_disagree_are_not_certainty(n):
    found = gap_of(np.ones((n, 2)))
    assert found.method == RULE_OF_THREE
    assert found.value == 0
    assert found.high == -found.low > 0
    # Had more items than the bound differed, n of them would have shown one with 95 % confidence.
    assert (1 - found.high / 100) ** n <= 0.05


def test_a_perfect_score_is_bounded_from_below_only():
    found = estimate([resample(np.ones((100, 1)))], SCORE)
    assert (found.value, found.high) == (100, 100)
    assert found.low == pytest.approx(100 - 2.9957, abs=1e-3)


def test_bound_of_the_overall_row_holds_for_its_worst_split():
    """Whatever the shares that differ, seeing none of them in any task has a chance of 5 % at the bound."""
    found = estimate([resample(np.ones((n, 2))) for n in (20, 80)], GAP_WEIGHTS)
    bound = found.high / 100
    for first in np.linspace(0, 2 * bound, 20):
        second = max(0.0, 2 * bound - first)
        assert (1 - first) ** 20 * (1 - second) ** 80 <= 0.0501


def test_fewer_than_two_units_have_no_interval():
    found = gap_of(np.array([[1.0, 0.0]]))
    assert (found.value, found.low, found.high, found.method) == (-100, None, None, NO_INTERVAL)
    with_many = estimate([resample(np.array([[1.0, 0.0]])), resample(binary(1, 50, 0.9, 0.5))], GAP_WEIGHTS)
    assert with_many.low is None


def test_nothing_to_estimate_from_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        estimate([], GAP_WEIGHTS)
    with pytest.raises(ValueError, match="at least one"):
        gap_of(np.empty((0, 2)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=2, max_size=30))
def test_hidden_gap_is_the_difference_of_the_gaps(rows):
    cells = np.array(rows)
    ranked, generated = gap_of(cells[:, :2], resamples=20), gap_of(cells[:, 2:], resamples=20)
    hidden = estimate([resample(cells, resamples=20)], CONTRAST_WEIGHTS)
    assert hidden.value == pytest.approx(generated.value - ranked.value, abs=3e-6)  # each is rounded to 1e-6
    assert hidden.low <= hidden.high


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (1, 0), (3, 3), (2, 9), (40, 61), (700, 901), (0, 3000)])
def test_mcnemar_equals_scipy(gained, lost):
    expected = scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_flips_count_each_direction():
    assert flips(np.array([1.0, 1.0, 0.0, 0.5]), np.array([0.0, 1.0, 1.0, 0.25])) == (1, 2)


def test_units_needed_would_just_clear_the_threshold():
    found = Estimate(value=-5, low=-10, high=0, n=100, units=100, method=BOOTSTRAP)
    needed = units_needed(found, -8)
    assert needed == 278
    assert -5 - 5 * math.sqrt(100 / needed) == pytest.approx(-8, abs=0.01)
    assert units_needed(found, -5) is None
