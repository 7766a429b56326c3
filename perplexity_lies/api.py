"""From Python: `evaluate` a checkpoint, `compare` two. The commands are a skin over these.

Knows nothing of terminals or of how a comparison is shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perplexity_lies.read.compare import compare_runs
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.run import evaluate

__all__ = ["compare", "evaluate"]


def compare(teacher: str, student: str, *, suite: str | Path, **options: Any) -> Comparison:
    """Run `suite` on both checkpoints under both protocols and compare them, item by item.

    `options` are those of `evaluate` (`out`, `data`, `limit`, `engine`, `tokenizer`, `protocol`, `device`, `dtype`,
    `allow_pickle`, `trust_remote_code`, `quiet`) and hold for both. What an earlier call has computed is read from `out`,
    not computed again.

    Raises UsageError, MissingError or CheckpointError, each with what to type next.
    """
    runs = [evaluate(name, suite=suite, **options) for name in (teacher, student)]
    return compare_runs(runs[0].path, runs[1].path)
