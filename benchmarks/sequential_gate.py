"""The sequential gate: false verdicts with a look after every batch, and the items that it does not ask.

    python benchmarks/sequential_gate.py --runs 2000 --out benchmarks/results/sequential_gate.json

Suites of 1,500 items with a known gap, drawn in random order without replacement (`suite`), or draws from an endless population
(`population`); margin 3 points, 2.5 % a side, a look after every 25 items. The fixed gate asks all 1,500.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from perplexity_lies.files import write_whole
from perplexity_lies.read.sequence import BATCH
from perplexity_lies.read.stats.sequential import ALPHA, log_capital

ITEMS, MARGIN = 1500, 0.03
CASES = {
    "gap 0, flips 10 %": (0.10, 0.0),
    "gap 0, flips 4 %": (0.04, 0.0),
    "gap +2, flips 10 %": (0.10, 0.02),
    "gap +5, flips 10 %": (0.10, 0.05),
    "at the margin, flips 10 %": (0.10, -MARGIN),
    "at the margin, flips 30 %": (0.30, -MARGIN),
    "gap -8, flips 16 %": (0.16, -0.08),
    "gap -15, flips 30 %": (0.30, -0.15),
}
"""Name -> (share of items on which the sides disagree, true gap)."""


def measure(flips: float, gap: float, target: str, runs: int, seed: int) -> dict[str, Any]:
    """Shares of verdicts, and quantiles of the items asked."""
    rng = np.random.default_rng(seed)
    gained, lost = round((flips + gap) / 2 * ITEMS), round((flips - gap) / 2 * ITEMS)
    suite = np.repeat([1.0, -1.0, 0.0], [gained, lost, ITEMS - gained - lost])
    replace = target == "population"
    drawn = np.array(
        [rng.choice(suite, ITEMS, replace=replace) if replace else rng.permutation(suite) for _ in range(runs)]
    )
    share, null, size = (drawn + 1) / 2, (1 - MARGIN) / 2, None if replace else ITEMS
    looks = slice(BATCH - 1, None, BATCH)
    passed, regressed = (
        log_capital(values, price, size)[:, looks] >= -np.log(ALPHA)
        for values, price in ((share, null), (1 - share, 1 - null))
    )
    never = passed.shape[1]
    first = [np.where(sure.any(1), sure.argmax(1), never) for sure in (passed, regressed)]
    asked = (np.minimum(np.minimum(*first), never - 1) + 1) * BATCH
    return {
        "pass": float((first[0] < first[1]).mean()),
        "regress": float((first[1] < first[0]).mean()),
        "inconclusive": float((first[0] == first[1]).mean()),
        "items_asked": {str(q): float(np.quantile(asked, q / 100)) for q in (10, 50, 90)},
        "median_share_of_fixed": round(float(np.median(asked)) / ITEMS, 3),
    }


def main() -> None:
    """Measure, and write JSON with provenance."""
    from _provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated gates a case")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sequential_gate.json"))
    options = parser.parse_args()
    begun = time.perf_counter()
    found = {
        target: {
            name: measure(flips, gap, target, options.runs, seed)
            for seed, (name, (flips, gap)) in enumerate(CASES.items())
        }
        for target in ("suite", "population")
    }
    result = {
        "runs": options.runs,
        "items": ITEMS,
        "batch": BATCH,
        "alpha_a_side": ALPHA,
        "margin_pp": 100 * MARGIN,
        **found,
    }
    result |= {"wall_s": round(time.perf_counter() - begun, 1), **provenance()}
    write_whole(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
