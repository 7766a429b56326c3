"""Coverage by simulation, in short: `benchmarks/coverage.py` has the whole, and its committed result."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import scipy.stats

from perplexity_lies.read.stats.student_t import t_quantile

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
RUNS = {"clusters, a sample": 1000, "clusters, the benchmark": 1000, "unequal tasks": 1000}
"""For regimes that take milliseconds a run; others get `MOST_RUNS`."""
MOST_RUNS = 2500
SHORT = {
    "few disagreements": ("n 200, 6 expected", "n 1000, 12 expected"),
    "many disagreements": ("n 100, 40%",),
    "hidden gap": ("n 200, 90% / 90%", "n 50, 99% / 90%"),
    "seeds": ("n 50, 3 seeds, 50%",),
    "clusters, a sample": ("20, sigma 1, loss 10%, spread 50",),
    "clusters, the benchmark": ("10, loss 10%, spread 2",),
    "unequal tasks": ("5 of 40 to 1500, losses to 30%",),
}


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """The benchmark, as a module."""
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bar(runs: int) -> tuple[float, float]:
    """How many of `runs` intervals must and may hold the truth."""
    return float(scipy.stats.binom.ppf(5e-4, runs, 0.935)), float(scipy.stats.binom.ppf(1 - 5e-4, runs, 0.965))


@pytest.mark.parametrize(("regime", "cell"), [(regime, cell) for regime, named in SHORT.items() for cell in named])
def test_intervals_hold_the_truth_as_often_as_they_say(coverage: ModuleType, regime: str, cell: str) -> None:
    """The bar: what an interval of 93.5 to 96.5 % gives in 999 of 1,000 such tests. One of 90 % fails at least three in four."""
    runs = RUNS.get(regime, MOST_RUNS)
    found = coverage.measure(coverage.cells()[regime][cell], runs, 5)
    low, high = bar(runs)
    assert low <= round(runs * found["coverage"]) <= high
    assert scipy.stats.binom.cdf(low - 1, runs, 0.90) > 0.75


def test_too_narrow_an_interval_would_not_pass(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 90 % interval in place of the 95 % one is found out."""
    monkeypatch.setattr("perplexity_lies.read.stats.regimes.t_quantile", lambda _, freedom: t_quantile(0.95, freedom))
    found = coverage.measure(coverage.cells()["hidden gap"]["n 200, 90% / 90%"], MOST_RUNS, 5)
    assert round(MOST_RUNS * found["coverage"]) < bar(MOST_RUNS)[0]


def test_the_committed_result_has_every_cell(coverage: ModuleType) -> None:
    result = json.loads((BENCHMARKS / "results" / "coverage.json").read_text(encoding="utf-8"))
    assert result["runs"] >= 2000
    assert {name: set(found) for name, found in result["regimes"].items()} == {
        name: set(found) for name, found in coverage.cells().items()
    }
