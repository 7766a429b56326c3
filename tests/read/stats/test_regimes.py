"""Estimates by regime: the method that each gets, and each method against its definition, scipy and published values."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from perplexity_lies.read.stats import moments, regimes
from perplexity_lies.read.stats.estimate import NO_INTERVAL, Estimate, units_needed
from perplexity_lies.read.stats.paired import flips, mcnemar_p
from perplexity_lies.read.stats.regimes import BENCHMARK, CONTRAST_WEIGHTS, GAP_WEIGHTS, SAMPLE, estimate, stratum
from perplexity_lies.read.stats.score import tango, tango_statistic, wilson
from perplexity_lies.read.stats.student_t import t_quantile, t_tail


def binary(seed: int, n: int, *chances: float) -> np.ndarray:
    """[n, k] 0/1 scores, column j right with chance `chances[j]`."""
    return (np.random.default_rng(seed).random((n, len(chances))) < np.array(chances)).astype(float)


def gap_of(cells: np.ndarray, subjects: list[str] | None = None, clusters: regimes.Clusters = SAMPLE) -> Estimate:
    return estimate([stratum(cells, subjects or [], clusters)], GAP_WEIGHTS)


def named(member: np.ndarray) -> list[str]:
    return [f"s{i:03}" for i in member]


# --- one task of 0/1 scores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [
        (1, 7, 21, -0.517, -0.026),  # Fagerland, Lydersen & Laake 2014, BMC Med Res Methodol 14:100
        (0, 0, 54, -0.0664, 0.0664),  # Tango 1998, section 4: no item discordant
    ],
)
def test_tango_gives_published_intervals(gained: int, lost: int, n: int, low: float, high: float) -> None:
    assert tango(gained, lost, n) == pytest.approx((low, high), abs=5e-4)


def constrained_statistic(gained: int, lost: int, n: int, gap: float) -> float:
    """The score statistic from its definition: the likelihood under the hypothesis is maximised numerically."""

    def unlikely(share: float) -> float:
        parts = ((gained, share + gap), (lost, share), (n - gained - lost, 1 - 2 * share - gap))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

    found = scipy.optimize.minimize_scalar(
        unlikely, bounds=(max(0.0, -gap), (1 - gap) / 2), method="bounded", options={"xatol": 1e-12}
    )
    return (gained - lost - n * gap) / math.sqrt(n * (2 * found.x + gap - gap**2))


@pytest.mark.parametrize("gap", [-0.4, -0.05, 0.02, 0.3])
@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (6, 16, 161), (3, 0, 40), (30, 20, 90)])
def test_tango_statistic_equals_its_definition(gained: int, lost: int, n: int, gap: float) -> None:
    assert tango_statistic(gained, lost, n, gap) == pytest.approx(constrained_statistic(gained, lost, n, gap), rel=1e-4)


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(1, 7, 21), (0, 1, 300), (5, 5, 10), (0, 10, 10), (10, 0, 10), (0, 0, 2)]
)
def test_the_ends_of_tango_are_just_not_rejected(gained: int, lost: int, n: int) -> None:
    low, high = tango(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert tango(lost, gained, n) == (-high, -low)
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1 - 1e-9:
            assert tango_statistic(gained, lost, n, end) == pytest.approx(sign * 1.959964, abs=1e-4)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (98, 100), (350, 1000)])
def test_wilson_equals_scipy(right: int, n: int) -> None:
    expected = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high))


def test_scores_of_zero_and_one_get_score_intervals() -> None:
    cells = binary(1, 200, 0.9, 0.8)
    gap, score = gap_of(cells), estimate([stratum(cells)], (0.0, 1.0))
    gained, lost = flips(cells[:, 0], cells[:, 1])
    assert (gap.method, score.method) == (regimes.TANGO, regimes.WILSON)
    assert (gap.low, gap.high) == pytest.approx([100 * end for end in tango(gained, lost, 200)], abs=1e-5)
    assert (score.low, score.high) == pytest.approx(
        [100 * end for end in wilson(int(cells[:, 1].sum()), 200)], abs=1e-5
    )
    assert (gap.n, gap.units, gap.apart, gap.bounded) == (200, 200, gained + lost, False)


@pytest.mark.parametrize("n", [3, 57, 220, 5000])
def test_items_that_never_disagree_are_not_certainty(n: int) -> None:
    for found in (gap_of(np.ones((n, 2))), estimate([stratum(np.ones((n, 4)))], CONTRAST_WEIGHTS)):
        assert found.bounded and found.value == 0
        assert found.high == pytest.approx(-found.low)
        # Had more items than the bound differed one way, n of them would have shown one with 90 % confidence or more.
        assert (1 - found.high / 100) ** n <= 0.1


# --- t, and pseudo-items ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [0.6, 1, 2.5, 9.3, 56, 1000, 1e6])
def test_t_quantile_equals_scipy(freedom: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-8)
    assert t_tail(1.7, freedom) == pytest.approx(scipy.stats.t.sf(1.7, freedom), rel=1e-7)


def test_a_hidden_gap_gets_the_t_interval_of_its_differences() -> None:
    cells = binary(6, 300, 0.9, 0.7, 0.8, 0.3)
    found = estimate([stratum(cells)], CONTRAST_WEIGHTS)
    differences = 100 * (cells[:, 3] - cells[:, 2] - cells[:, 1] + cells[:, 0])
    low, high = scipy.stats.t.interval(0.95, 299, differences.mean(), scipy.stats.sem(differences))
    assert found.method == regimes.STUDENT_T
    assert (found.value, found.low, found.high) == pytest.approx((differences.mean(), low, high), abs=1e-5)


@pytest.mark.parametrize(("apart", "method"), [(11, regimes.PSEUDO_ITEMS), (12, regimes.STUDENT_T)])
def test_few_disagreements_add_a_pseudo_item_at_each_end(apart: int, method: str) -> None:
    cells = np.ones((100, 2))
    cells[:apart, 1] = 0.5
    found = gap_of(cells)
    values = np.concatenate([100 * (cells[:, 1] - cells[:, 0]), [-100, 100] if apart < 12 else []])
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
    assert (found.method, found.apart) == (method, apart)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


def test_a_difference_that_all_items_share_is_no_certainty_either() -> None:
    found = gap_of(np.tile([0.5, 0.25], (30, 1)))
    assert found.bounded and found.low < found.value < found.high


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=2, max_size=30))
def test_intervals_hold_their_value_and_stay_on_the_scale(rows: list[tuple[float, ...]]) -> None:
    cells = np.array(rows)
    ranked, generated = gap_of(cells[:, :2]), gap_of(cells[:, 2:])
    hidden = estimate([stratum(cells)], CONTRAST_WEIGHTS)
    assert hidden.value == pytest.approx(generated.value - ranked.value, abs=3e-6)  # each is rounded to 1e-6
    for found, most in ((ranked, 100), (hidden, 200)):
        assert -most <= found.low <= found.value <= found.high <= most


# --- clusters ---------------------------------------------------------------------------------------------------------


def clustered(seed: int, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(0, 1, len(member)) + rng.normal(0, 0.5, len(sizes))[member], member


@pytest.mark.parametrize("sizes", [[5, 9, 2, 30, 1, 4], [3] * 10, [1] * 8])
def test_cr2_and_its_degrees_of_freedom_equal_the_matrices_that_define_them(sizes: list[int]) -> None:
    """Bell & McCaffrey 2002, for the regression on a constant: adjusted residuals (I - H_gg)^(-1/2) e_g."""
    values, member = clustered(2, sizes)
    n, design = len(values), np.ones((len(values), 1))
    off = np.eye(n) - design @ design.T / n
    residuals = off @ values
    variance, columns = 0.0, []
    for g in range(len(sizes)):
        rows = np.flatnonzero(member == g)
        eigenvalues, vectors = np.linalg.eigh(off[np.ix_(rows, rows)])
        adjusted = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T @ design[rows] / n
        variance += (residuals[rows] @ adjusted).item() ** 2
        columns.append(off[:, rows] @ adjusted[:, 0])
    spectrum = np.linalg.eigvalsh(np.stack(columns, axis=1).T @ np.stack(columns, axis=1))
    found = moments.of_clusters(values, member)
    assert found.variance == pytest.approx(variance)
    assert found.freedom == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum())


def test_clusters_of_one_item_are_items() -> None:
    values, member = clustered(3, [1] * 40)
    items, clusters = moments.of_items(values), moments.of_clusters(values, member)
    assert (clusters.variance, clusters.freedom) == pytest.approx((items.variance, 39))


def test_sampled_subjects_get_cr2_and_swap_with_the_sides() -> None:
    cells, member = binary(4, 600, 0.9, 0.7), np.repeat(np.arange(20), 30)
    found, swapped = gap_of(cells, named(member)), gap_of(cells[:, ::-1], named(member))
    expected = moments.of_clusters(100 * (cells[:, 1] - cells[:, 0]), member)
    half = scipy.stats.t.ppf(0.975, expected.freedom) * math.sqrt(expected.variance)
    assert (found.method, found.units) == (regimes.CR2, 20)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=1e-5)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-found.value, -found.high, -found.low), abs=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_handful_of_clusters_has_no_interval_and_says_why(count: int) -> None:
    found = gap_of(binary(4, 90, 0.9, 0.5), [f"s{i % count}" for i in range(90)])
    assert (found.low, found.high, found.method) == (None, None, NO_INTERVAL)
    assert found.why == f"{count} clusters are too few: an interval needs 10"


def test_clusters_without_a_disagreement_count_as_items() -> None:
    found = gap_of(np.ones((400, 2)), [f"s{i % 20}" for i in range(400)])
    assert (found.method, found.bounded) == (regimes.PSEUDO_CLUSTERS, True)
    assert found.high == pytest.approx(100 * t_quantile(0.975, 21) * math.sqrt(2 / (21 * 22)), abs=1e-5)


def test_one_subject_is_no_cluster() -> None:
    assert gap_of(binary(8, 60, 0.9, 0.5), ["all"] * 60).method == regimes.TANGO


def test_subjects_that_are_the_benchmark_are_strata() -> None:
    """Cochran 1977, equation 5.7, written out; and the mean is still over items."""
    sizes = [4, 50, 9, 100]
    cells = np.vstack([binary(i, n, 0.9, 0.2 + 0.2 * i) for i, n in enumerate(sizes)])
    member = np.repeat(np.arange(4), sizes)
    found = gap_of(cells, named(member), BENCHMARK)
    values = 100 * (cells[:, 1] - cells[:, 0])
    parts = [(n / 163) ** 2 * values[member == i].var(ddof=1) / n for i, n in enumerate(sizes)]
    freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, sizes, strict=True))
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert (found.method, found.units) == (regimes.STRATIFIED, 163)
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), abs=1e-5
    )


@pytest.mark.parametrize("sizes", [[1] * 20, [1, 30], [1, 1, 30]])
def test_strata_of_one_item_are_collapsed(sizes: list[int]) -> None:
    values, member = clustered(5, sizes)
    found = moments.of_strata(values, member)
    assert found.variance > 0 and found.freedom > 1
    if sizes == [1, 30]:
        assert found.variance == pytest.approx(moments.of_items(values).variance)


# --- several tasks ----------------------------------------------------------------------------------------------------


def test_overall_is_the_unweighted_mean_of_tasks_by_welch() -> None:
    tasks = [binary(9, 60, 0.9, 0.4), binary(10, 900, 0.9, 0.8)]
    found = estimate([stratum(cells) for cells in tasks], GAP_WEIGHTS)
    values = [100 * (cells[:, 1] - cells[:, 0]) for cells in tasks]
    # Welch's test compares two means; a mean of two is half the difference of one and the other's opposite.
    welch = scipy.stats.ttest_ind(values[0], -values[1], equal_var=False).confidence_interval(0.95)
    assert found.method == regimes.WELCH and (found.n, found.units) == (960, 960)
    assert found.value == pytest.approx(statistics.fmean(column.mean() for column in values), abs=1e-5)
    assert (found.low, found.high) == pytest.approx((welch.low / 2, welch.high / 2), abs=1e-5)


def test_one_task_is_its_own_overall_row() -> None:
    cells = binary(11, 80, 0.9, 0.6)
    assert estimate([stratum(cells)], GAP_WEIGHTS) == gap_of(cells)


def test_a_small_task_at_its_ceiling_widens_the_mean() -> None:
    large, small = binary(12, 2000, 0.9, 0.8), np.ones((20, 2))
    both = estimate([stratum(large), stratum(small)], GAP_WEIGHTS)
    alone = estimate([stratum(large)], GAP_WEIGHTS)
    assert both.high - both.low > alone.high - alone.low


def test_what_has_no_interval_leaves_the_mean_none() -> None:
    found = gap_of(np.array([[1.0, 0.0]]))
    assert (found.value, found.low, found.high, found.method) == (-100, None, None, NO_INTERVAL)
    with_many = estimate([stratum(np.array([[1.0, 0.0]])), stratum(binary(1, 50, 0.9, 0.5))], GAP_WEIGHTS)
    assert with_many.low is None and with_many.why == "a single item has no spread"


def test_nothing_to_estimate_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate([], GAP_WEIGHTS)
    with pytest.raises(ValueError, match="at least one"):
        gap_of(np.empty((0, 2)))


# --- flips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (1, 0), (3, 3), (2, 9), (40, 61), (700, 901), (0, 3000)])
def test_mcnemar_equals_scipy(gained: int, lost: int) -> None:
    expected = scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_flips_count_each_direction() -> None:
    assert flips(np.array([1.0, 1.0, 0.0, 0.5]), np.array([0.0, 1.0, 1.0, 0.25])) == (1, 2)


def test_units_needed_would_just_clear_the_threshold() -> None:
    found = Estimate(value=-5, low=-10, high=0, n=100, units=100, apart=40, method=regimes.STUDENT_T)
    needed = units_needed(found, -8)
    assert needed == 278
    assert -5 - 5 * math.sqrt(100 / needed) == pytest.approx(-8, abs=0.01)
    assert units_needed(found, -5) is None
