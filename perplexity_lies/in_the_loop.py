"""The harness for a training loop: a checkpoint directory in, its scores by task, rung and item out.

measure = measurer(suite="miniature", out=Path("measured"))
measure(Path("student")).percent("generation")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perplexity_lies.read.scores import Scores, scores_of

Measure = Callable[[Path], Scores]
"""A checkpoint directory -> its scores."""


def measurer(
    *, suite: str | Path, out: Path, data: Path | None = None, limit: int | None = None, device: str = "auto"
) -> Measure:
    """A function that runs `suite` on a checkpoint directory, on every rung that the suite has.

    Runs go to `out/runs`, where the same weights are not run twice. Raises UsageError or MissingError at once when the
    suite or its data are not there; the function itself raises what `evaluate` raises.
    """
    from perplexity_lies.catalogue.mirror import open_mirror
    from perplexity_lies.catalogue.suite import load_suite
    from perplexity_lies.run import evaluate

    mirror = open_mirror(data)
    for name in load_suite(suite).datasets:
        mirror.digest(name)

    def measure(checkpoint: Path) -> Scores:
        return scores_of(
            evaluate(str(checkpoint), suite=suite, out=out, data=data, limit=limit, device=device, quiet=True)
        )

    return measure
