"""Perplexity Lies: what do a checkpoint's log-likelihood scores hide?

    import perplexity_lies as plies
    comparison = plies.compare("builtin:teacher", "builtin:student", suite="miniature")
    comparison.gaps            # data frame: scores and gaps with intervals, by task and protocol
    comparison.items           # data frame: every paired item, both protocols, both checkpoints

Names are resolved when they are first used, so that importing the package loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplexity_lies.api import compare, evaluate
    from perplexity_lies.errors import PliesError
    from perplexity_lies.read.compare import compare_runs
    from perplexity_lies.read.comparison import Comparison, load_comparison
    from perplexity_lies.read.gate import decide
    from perplexity_lies.record.store import open_run

__all__ = ["Comparison", "PliesError", "compare", "compare_runs", "decide", "evaluate", "load_comparison", "open_run"]

_HOMES = {
    "compare": "perplexity_lies.api",
    "evaluate": "perplexity_lies.api",
    "compare_runs": "perplexity_lies.read.compare",
    "Comparison": "perplexity_lies.read.comparison",
    "load_comparison": "perplexity_lies.read.comparison",
    "PliesError": "perplexity_lies.errors",
    "decide": "perplexity_lies.read.gate",
    "open_run": "perplexity_lies.record.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found
