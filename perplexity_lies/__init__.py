"""Perplexity Lies: what do a checkpoint's log-likelihood scores hide?

    import perplexity_lies as plies
    comparison = plies.compare("builtin:teacher", "builtin:student", suite="miniature")
    comparison.gaps            # data frame: scores and gaps with intervals, by task and protocol
    comparison.items           # data frame: every paired item, both protocols, both checkpoints

Names are resolved when they are first used, so that importing the package loads nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplexity_lies.api import compare, evaluate
    from perplexity_lies.compare import compare_runs
    from perplexity_lies.comparison import Comparison, load_comparison
    from perplexity_lies.errors import PliesError
    from perplexity_lies.gate import decide
    from perplexity_lies.store import open_run

__all__ = ["Comparison", "PliesError", "compare", "compare_runs", "decide", "evaluate", "load_comparison", "open_run"]

_HOMES = {
    "compare": "perplexity_lies.api",
    "evaluate": "perplexity_lies.api",
    "compare_runs": "perplexity_lies.compare",
    "Comparison": "perplexity_lies.comparison",
    "load_comparison": "perplexity_lies.comparison",
    "PliesError": "perplexity_lies.errors",
    "decide": "perplexity_lies.gate",
    "open_run": "perplexity_lies.store",
}


class _FrontDoor(ModuleType):
    """A package whose `compare` is the function, whenever the module of that name is imported."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):  # Python binds a submodule when it is first imported
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor
