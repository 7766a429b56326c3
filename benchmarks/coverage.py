"""How often the 95 % intervals of the read wing hold the truth, by regime: simulated at known truth.

    python benchmarks/coverage.py [--runs 4000] [--out benchmarks/results/coverage.json]

Every interval comes from `regimes.estimate`, as a comparison's do. A cell tells the share of runs whose interval holds the
truth, its median width, and how often there was no interval. `in band`: 93.5 to 96.5 %; `wide`: above it, which is safe but
costs items, and is what few disagreements must give; `narrow`: below it, which would be a fault.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perplexity_lies.files import write_whole
from perplexity_lies.read.stats.regimes import (
    BENCHMARK,
    CONTRAST_WEIGHTS,
    GAP_WEIGHTS,
    SAMPLE,
    Stratum,
    estimate,
    stratum,
)

BAND = (0.935, 0.965)
RUNS = 4000
Drawn = tuple[list[Stratum], tuple[float, ...], float]
"""Strata, contrast and the true value in percentage points."""
Draw = Callable[[np.random.Generator], Drawn]
Floats = NDArray[np.float64]


def paired(rng: np.random.Generator, gained: Floats | float, lost: Floats | float, n: int) -> Floats:
    """[n, 2] 0/1 scores: the student alone right with chance `gained`, the baseline alone with `lost`, else both."""
    draw = rng.random(n)
    gains, losses = draw < gained, draw > 1 - np.asarray(lost)
    return np.stack([~gains, ~losses], axis=1).astype(float)


def one_task(rng: np.random.Generator, n: int, gained: float, lost: float) -> Drawn:
    """One task of 0/1 scores without clusters."""
    return [stratum(paired(rng, gained, lost, n))], GAP_WEIGHTS, 100 * (gained - lost)


def hidden(rng: np.random.Generator, n: int, ranked: float, replied: float) -> Drawn:
    """A hidden gap: four independent scores; the student loses a tenth of the teacher's when it replies."""
    chances = np.array([ranked, ranked, replied, 0.9 * replied])
    return [stratum((rng.random((n, 4)) < chances).astype(float))], CONTRAST_WEIGHTS, -10 * replied


def seed_means(rng: np.random.Generator, n: int, seeds: int, spread: float, level: float) -> Drawn:
    """Means over seeds; an item's chance is Beta with mean `level`, the student's a twentieth lower; `spread` a + b."""
    chance = rng.beta(level * spread, (1 - level) * spread, n)
    cells = np.stack([rng.binomial(seeds, chance), rng.binomial(seeds, 0.95 * chance)], axis=1) / seeds
    return [stratum(cells)], GAP_WEIGHTS, -5 * level


def sampled_clusters(rng: np.random.Generator, count: int, sigma: float, lost: float, spread: float) -> Drawn:
    """Subjects drawn from a population: sizes log-normal (median 30), chances of a gain and a loss Beta by subject."""
    sizes = np.maximum(2, rng.lognormal(np.log(30), sigma, count).round().astype(int))
    gains, losses = (np.repeat(rng.beta(p * spread, (1 - p) * spread, count), sizes) / 2 for p in (0.04, 2 * lost))
    cells = paired(rng, gains, losses, int(sizes.sum()))
    subjects = np.repeat([f"s{i:03}" for i in range(count)], sizes)
    return [stratum(cells, subjects.tolist(), SAMPLE)], GAP_WEIGHTS, 100 * (0.02 - lost)


def fixed_clusters(rng: np.random.Generator, count: int, lost: float, spread: float) -> Drawn:
    """Subjects that are the benchmark: their sizes and chances are the same in every run."""
    fixed = np.random.default_rng(count)
    sizes = np.maximum(2, fixed.lognormal(np.log(30), 1.0, count).round().astype(int))
    gains, losses = (np.repeat(fixed.beta(p * spread, (1 - p) * spread, count), sizes) / 2 for p in (0.04, 2 * lost))
    cells = paired(rng, gains, losses, int(sizes.sum()))
    subjects = np.repeat([f"s{i:03}" for i in range(count)], sizes)
    truth = 100 * float(gains.mean() - losses.mean())
    return [stratum(cells, subjects.tolist(), BENCHMARK)], GAP_WEIGHTS, truth


def tasks(rng: np.random.Generator, count: int, small: int, large: int, most: float) -> Drawn:
    """The mean over tasks of `small` to `large` items whose chances of a loss go from 0.5 % to `most`."""
    sizes = np.geomspace(small, large, count).round().astype(int)
    losses = np.random.default_rng(count).permutation(np.geomspace(0.005, most, count))
    strata = [stratum(paired(rng, 0.3 * p, p, int(n))) for n, p in zip(sizes, losses, strict=True)]
    return strata, GAP_WEIGHTS, -70 * float(losses.mean())


def cells() -> dict[str, dict[str, Draw]]:
    """Regime -> cell -> how one run of it is drawn."""
    part = functools.partial
    few = [(n, k / n) for n in (50, 200, 1000) for k in (1, 3, 6, 12)]
    return {
        "ceiling": {
            f"n {n}, loss {lost:.1%}": part(one_task, n=n, gained=0.0, lost=lost)
            for n in (200, 1000)
            for lost in (0.005, 0.01, 0.03)
        },
        "few disagreements": {
            f"n {n}, {n * share:.0f} expected": part(one_task, n=n, gained=0.4 * share, lost=0.6 * share)
            for n, share in few
        },
        "many disagreements": {
            f"n {n}, {share:.0%}": part(one_task, n=n, gained=0.3 * share, lost=0.7 * share)
            for n in (100, 400, 1500)
            for share in (0.2, 0.4)
        },
        "hidden gap": {
            f"n {n}, {ranked:.0%} / {replied:.0%}": part(hidden, n=n, ranked=ranked, replied=replied)
            for n in (50, 200, 1000)
            for ranked, replied in ((0.5, 0.5), (0.9, 0.9), (0.99, 0.9), (0.99, 0.99))
        },
        "seeds": {
            f"n {n}, {seeds} seeds, {level:.0%}": part(seed_means, n=n, seeds=seeds, spread=1.0, level=level)
            for n in (50, 200)
            for seeds in (3, 10)
            for level in (0.5, 0.95)
        },
        "clusters, a sample": {
            f"{count}, sigma {sigma:g}, loss {lost:.0%}, spread {spread:g}": part(
                sampled_clusters, count=count, sigma=sigma, lost=lost, spread=spread
            )
            for count in (4, 6, 10, 20, 57)
            for sigma in (0.5, 1.0)
            for lost, spread in ((0.1, 5.0), (0.1, 50.0), (0.03, 5.0))
        },
        "clusters, the benchmark": {
            f"{count}, loss {lost:.0%}, spread {spread:g}": part(fixed_clusters, count=count, lost=lost, spread=spread)
            for count in (4, 10, 57)
            for lost, spread in ((0.1, 2.0), (0.02, 5.0))
        },
        "unequal tasks": {
            f"{count} of {small} to {large}, losses to {most:.0%}": part(
                tasks, count=count, small=small, large=large, most=most
            )
            for count in (2, 5, 15)
            for small, large, most in ((40, 1500, 0.3), (200, 200, 0.3), (100, 1000, 0.05))
        },
    }


def measure(draw: Draw, runs: int, seed: int) -> dict[str, Any]:
    """One cell: coverage over the runs that have an interval, width, methods."""
    rng = np.random.default_rng(seed)
    held, widths, methods = 0, [], {}
    for _ in range(runs):
        strata, contrast, truth = draw(rng)
        found = estimate(strata, contrast)
        methods[found.method] = methods.get(found.method, 0) + 1
        if found.low is not None and found.high is not None:
            held += found.low - 1e-9 <= truth <= found.high + 1e-9
            widths.append(found.high - found.low)
    if not widths:
        return {"verdict": "no interval", "methods": methods}
    coverage = held / len(widths)
    verdict = "narrow" if coverage < BAND[0] else "wide" if coverage > BAND[1] else "in band"
    return {
        "coverage": round(coverage, 4), "verdict": verdict, "median_width_pp": round(float(np.median(widths)), 3),
        "none": runs - len(widths), "methods": methods,
    }  # fmt: skip


def measure_all(runs: int) -> dict[str, dict[str, Any]]:
    """All regimes, each with its cells; a line a regime on stderr."""
    found: dict[str, dict[str, Any]] = {}
    for number, (regime, of_regime) in enumerate(cells().items()):
        begun = time.perf_counter()
        found[regime] = {
            name: measure(draw, runs, 1000 * number + i) for i, (name, draw) in enumerate(of_regime.items())
        }
        shares = [cell["coverage"] for cell in found[regime].values() if "coverage" in cell]
        verdicts = [cell["verdict"] for cell in found[regime].values()]
        counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        said = f"{regime}: {100 * min(shares):.1f} to {100 * max(shares):.1f} % ({counted})"
        print(f"{said}, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return found


def main() -> None:
    """Measure, and write JSON with provenance."""
    from _provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="simulated comparisons a cell")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.json"))
    options = parser.parse_args()
    begun = time.perf_counter()
    regimes = measure_all(options.runs)
    result = {"runs": options.runs, "nominal": 0.95, "band": BAND, "regimes": regimes}
    result |= {"wall_s": round(time.perf_counter() - begun, 1), **provenance()}
    write_whole(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
