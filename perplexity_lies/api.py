"""From Python: `evaluate` a checkpoint, `compare` a teacher with its students. The commands are a skin over these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perplexity_lies.read.compare import compare_runs
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.run import evaluate

__all__ = ["compare", "evaluate"]


def compare(teacher: str, *students: str, suite: str | Path, **options: Any) -> Comparison:
    """Run `suite` on a teacher and one or more students and compare them, item by item.

    `options` are the fields of `options.RunOptions` (`out`, `data`, `limit`, `rungs`, `engine`, `device`, `dtype` ...) and
    hold for all. What an earlier call has computed is read from `out`, not computed again.

    Raises UsageError, MissingError or CheckpointError, each with what to type next.
    """
    runs = [evaluate(name, suite=suite, **options) for name in (teacher, *students)]
    return compare_runs(*(run.path for run in runs))
