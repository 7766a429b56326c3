"""Engines: a loaded checkpoint that can score and generate. The table names every engine; each is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perplexity_lies.errors import UsageError, from_table, nearest

if TYPE_CHECKING:
    from perplexity_lies.checkpoint import Checkpoint
    from perplexity_lies.engines.base import Engine, EngineOptions

ENGINES = {
    "torch": "perplexity_lies.engines.torch:TorchEngine",
}
"""Engine name -> `module:class`. The class is called with (checkpoint, options)."""

EXTRA_OF_ENGINE = {"torch": "torch"}
"""Which extra of the distribution brings an engine's libraries."""


def open_engine(name: str, checkpoint: Checkpoint, options: EngineOptions) -> Engine:
    """The engine `name`, loaded with `checkpoint`.

    Raises UsageError for a name that the table lacks and MissingError, naming the extra, when its library is absent.
    """
    if name not in ENGINES:
        raise UsageError(
            f"there is no engine {name!r}{nearest(name, ENGINES)}",
            found=f"engines: {', '.join(ENGINES)}",
            mend=f"--engine {next(iter(ENGINES))}",
        )
    factory = from_table(ENGINES[name], f"the engine {name!r} cannot start", EXTRA_OF_ENGINE[name])
    engine: Engine = factory(checkpoint, options)
    return engine
