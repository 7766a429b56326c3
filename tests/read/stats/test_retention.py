"""Retention against its definition, the large-sample delta method and simulation."""

import math

import numpy as np
import pytest

from perplexity_lies.read.compare import compare_runs, load_comparison
from perplexity_lies.read.stats.regimes import SAMPLE, stratum
from perplexity_lies.read.stats.retention import AT_CHANCE, retention


def pair(seed, n, teacher, kept, gained=0.02):
    """[n, 2] 0/1 scores: the student keeps `kept` of what the teacher has right, and gains a little."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < teacher
    return np.column_stack([right, np.where(right, rng.random(n) < kept, rng.random(n) < gained)]).astype(float)


def test_bounds_are_the_ratios_that_a_paired_t_test_does_not_reject():
    """Fieller's definition, by scanning ratios; its quantile is taken at the ratio found, as the method does."""
    scipy_stats = pytest.importorskip("scipy.stats")
    cells, chance = pair(1, 300, 0.7, 0.9), 0.25
    found = retention([stratum(cells)], [chance])
    above = cells - chance
    assert found.value == pytest.approx(100 * above[:, 1].mean() / above[:, 0].mean(), abs=1e-5)
    kept = [
        r
        for r in np.linspace(0.5, 1.5, 20_001)
        if scipy_stats.ttest_1samp(above[:, 1] - r * above[:, 0], 0).pvalue > 0.05
    ]
    assert (found.low, found.high) == pytest.approx((100 * kept[0], 100 * kept[-1]), abs=0.011)


def test_agrees_with_the_delta_method_where_items_are_many():
    cells = pair(2, 40_000, 0.8, 0.85)
    found = retention([stratum(cells)], [0.25])
    teacher, ratio = cells[:, 0].mean() - 0.25, found.value / 100
    error = (cells[:, 1] - ratio * cells[:, 0]).std(ddof=1) / teacher / math.sqrt(len(cells))
    assert (found.high - found.low) / 200 == pytest.approx(1.96 * error, rel=0.01)


def test_a_teacher_at_chance_has_no_retention_to_show():
    rng = np.random.default_rng(3)
    cells = (rng.random((200, 2)) < 0.28).astype(float)
    found = retention([stratum(cells)], [0.25])
    assert found is None or (found.low is None and found.why == AT_CHANCE)
    assert retention([stratum(np.zeros((50, 2)))], [0.25]) is None


def test_two_that_agree_on_every_item_are_not_certain_to():
    found = retention([stratum(np.ones((80, 2)))], [0.0])
    assert found.value == 100 and found.low < 99.5 and found.high > 100.5


def test_a_handful_of_clusters_has_no_interval():
    cells = pair(4, 90, 0.8, 0.9)
    assert "clusters" in retention([stratum(cells, [str(i % 3) for i in range(90)], SAMPLE)], [0.0]).why


def test_overall_is_the_ratio_of_means_above_chance():
    one, other = pair(5, 100, 0.9, 0.9), pair(6, 400, 0.5, 0.5)
    found = retention([stratum(one), stratum(other)], [0.25, 0.0])
    teacher = (one[:, 0].mean() - 0.25 + other[:, 0].mean()) / 2
    student = (one[:, 1].mean() - 0.25 + other[:, 1].mean()) / 2
    assert found.value == pytest.approx(100 * student / teacher, abs=1e-5)


@pytest.mark.parametrize(("n", "teacher", "kept"), [(100, 0.5, 0.8), (200, 0.95, 0.9), (400, 0.4, 1.0)])
def test_covers_the_truth_as_often_as_it_says(n, teacher, kept):
    """1,500 draws: 95 % +- 1.7 %, three binomial standard errors."""
    chance = 0.25
    truth = 100 * (teacher * kept + (1 - teacher) * 0.02 - chance) / (teacher - chance)
    found = [retention([stratum(pair((n, i), n, teacher, kept))], [chance]) for i in range(1500)]
    held = [one.low is not None and one.low <= truth <= one.high for one in found if one]
    assert 0.933 <= np.mean(held) <= 0.97


def rung_run(handmade, path, name, ranked, written):
    """One task of 1,000 items: the first `ranked` are right by log-likelihood, the first `written` by generation."""
    scores = {
        ("a", rung): [1] * k + [0] * (1000 - k) for rung, k in (("loglikelihood", ranked), ("generation", written))
    }
    return handmade.scores_run(
        path / name,
        scores,
        name=name,
        tasks=[{"name": "a", "rungs": {"loglikelihood": {"chance": 0.25}, "generation": {}}}],
    )


def test_the_headline_says_both_where_points_and_shares_disagree(handmade, tmp_path):
    """7 points are lost either way: of 60 points above chance by log-likelihood, of 20 by generation."""
    compared = compare_runs(rung_run(handmade, tmp_path, "t", 850, 200), rung_run(handmade, tmp_path, "s", 780, 130))
    assert "keeps 88.3 % by log-likelihood and 65.0 % by generation" in compared.headline()
    line = compared.gaps.query("rung == 'generation' and task == 'a'").iloc[0]
    assert line.retention == 65.0 and line.retention_low < 65.0 < line.retention_high
    again = load_comparison(compared.write(tmp_path / "comparison.json"))
    assert (
        again.tasks[0].rungs["generation"].sides[1].retention
        == compared.tasks[0].rungs["generation"].sides[1].retention
    )
    alike = compare_runs(rung_run(handmade, tmp_path, "u", 850, 800), rung_run(handmade, tmp_path, "v", 700, 400))
    assert "keeps" not in alike.headline()
