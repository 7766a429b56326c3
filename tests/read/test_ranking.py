"""Rankings of several checkpoints by two rungs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from perplexity_lies.errors import UsageError
from perplexity_lies.read.compare import compare_runs
from perplexity_lies.read.ranking import kendall_tau, rank
from perplexity_lies.rungs import GENERATION as GEN
from perplexity_lies.rungs import LOGLIKELIHOOD as LL


def runs_of(handmade, folder, counts, n=400):
    """Runs of checkpoints a, b, ... with these numbers of right items by log-likelihood and generation."""
    rng, found = np.random.default_rng(0), []
    for name, (ranked, written) in counts.items():
        scores = {("t", rung): rng.permutation([1] * k + [0] * (n - k)) for rung, k in ((LL, ranked), (GEN, written))}
        found.append(handmade.scores_run(folder / name, scores, name=name))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_tau_equals_scipy_with_ties(seed):
    one, other = np.random.default_rng(seed).integers(0, 4, (2, 6)).astype(float)
    assert kendall_tau(one[None], other[None])[0] == pytest.approx(
        scipy.stats.kendalltau(one, other).statistic, nan_ok=True
    )


def test_two_rungs_that_disagree_are_said_to(handmade, tmp_path):
    found = rank(compare_runs(*runs_of(handmade, tmp_path, {"a": (300, 300), "b": (380, 200), "c": (150, 60)})))
    assert found.verdict.startswith("by log-likelihood you would ship b; by generation a")
    assert [name for name, _ in found.scores[GEN]] == ["a", "b", "c"]
    assert found.tau.value == pytest.approx(1 / 3) and found.tau.low <= 1 / 3 <= found.tau.high
    (first, *others) = found.pairs
    assert (first.first, first.second, first.wrong) == ("b", "a", 1.0) and max(pair.wrong for pair in others) < 0.025
    assert "1 are surely ordered wrongly" in found.verdict


def test_two_that_cannot_be_told_apart_are_not(handmade, tmp_path):
    """Probability of the wrong order against the normal approximation of independent gaps."""
    found = rank(compare_runs(*runs_of(handmade, tmp_path, {"a": (310, 305), "b": (300, 300), "c": (100, 90)})))
    pair = next(pair for pair in found.pairs if {pair.first, pair.second} == {"a", "b"})
    right = [
        scipy.stats.norm.cdf(gap / (400 * (2 * share * (1 - share) / 400) ** 0.5))
        for gap, share in ((10, 305 / 400), (5, 302.5 / 400))
    ]
    expected = right[0] * (1 - right[1]) + right[1] * (1 - right[0])
    assert pair.wrong == pytest.approx(expected, abs=0.06)
    assert "cannot be told" in found.verdict


def test_ties_and_equal_names(handmade, tmp_path):
    runs = [
        handmade.scores_run(tmp_path / str(i), {("t", rung): [1] * 50 for rung in (LL, GEN)}, name="x")
        for i in range(3)
    ]
    found = rank(compare_runs(*runs))
    assert found.tau.value is None and {pair.wrong for pair in found.pairs} == {0.5}
    assert "x (1) or x (2) or x (3)" in found.verdict


def test_too_few_or_nothing_in_common_is_refused(handmade, tmp_path):
    runs = runs_of(handmade, tmp_path, {"a": (3, 3), "b": (3, 3)})
    with pytest.raises(UsageError, match="3 checkpoints"):
        rank(compare_runs(*runs))
    alone = [handmade.scores_run(tmp_path / f"x{i}", {("t", GEN): [1, 0]}, name=f"x{i}") for i in range(3)]
    with pytest.raises(UsageError, match="nothing to rank"):
        rank(compare_runs(*alone))


def test_the_command_prints_and_writes(handmade, tmp_path):
    runs = runs_of(handmade, tmp_path, {"a": (300, 300), "b": (380, 200), "c": (150, 60)})
    command = [sys.executable, "-m", "perplexity_lies.cli", "rank", *map(str, runs), "--json", str(tmp_path / "r.json")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert (
        said.stdout.startswith("by log-likelihood you would ship b; by generation a")
        and "Kendall tau 0.33" in said.stdout
    )
    assert json.loads((tmp_path / "r.json").read_text())["pairs"][0]["wrong"] == 1.0
