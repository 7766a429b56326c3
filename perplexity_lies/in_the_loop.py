"""A training loop's window on the harness: a checkpoint directory in, plain scores by task, protocol and item out.

A training loop calls what `measurer` gives, and knows nothing of suites, engines or protocols. Knows nothing of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from perplexity_lies.record.records import UNMEASURED

Measured = dict[str, dict[str, dict[str, Any]]]
"""Task -> protocol -> {"items": {item: score in [0, 1]}, "statuses": {status: records}}."""


def measurer(
    *, suite: str | Path, out: Path, data: Path | None = None, limit: int | None = None, device: str = "auto"
) -> Callable[[Path], Measured]:
    """A function that runs `suite` on a checkpoint directory under both protocols.

    Runs go to `out/runs`, where the same weights are not asked twice. Raises UsageError or MissingError at once when the
    suite or its data are not there; the function itself raises what `evaluate` raises.
    """
    from perplexity_lies.catalogue.mirror import open_mirror
    from perplexity_lies.catalogue.suite import load_suite
    from perplexity_lies.run import evaluate

    mirror = open_mirror(data)
    for name in load_suite(suite).datasets:
        mirror.digest(name)

    def measure(checkpoint: Path) -> Measured:
        run = evaluate(str(checkpoint), suite=suite, out=out, data=data, limit=limit, device=device, quiet=True)
        items: dict[tuple[str, str], dict[str, list[float]]] = {}
        statuses: dict[tuple[str, str], Counter[str]] = {}
        for record in run.records():
            key = record.task, record.protocol
            if record.status not in UNMEASURED:
                items.setdefault(key, {}).setdefault(record.item, []).append(record.score)
            statuses.setdefault(key, Counter())[str(record.status)] += 1
        measured: Measured = {}
        for (task, protocol), scores in items.items():
            means = {item: fmean(of_seeds) for item, of_seeds in scores.items()}
            measured.setdefault(task, {})[protocol] = {"items": means, "statuses": dict(statuses[task, protocol])}
        return measured

    return measure
