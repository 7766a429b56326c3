"""Engines: a loaded checkpoint that can score and generate. The table names every engine; each is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perplexity_lies.errors import UsageError, from_table, nearest

if TYPE_CHECKING:
    from perplexity_lies.checkpoint.lookup import Checkpoint
    from perplexity_lies.engines.base import Engine, EngineOptions

ENGINES = {
    "torch": "perplexity_lies.engines.torch:TorchEngine",
    "vllm": "perplexity_lies.engines.vllm:VllmEngine",
    "endpoint": "perplexity_lies.engines.endpoint:EndpointEngine",
}
"""Engine name -> `module:class`. The class is called with (checkpoint, options)."""

EXTRA_OF_ENGINE = {"torch": "torch", "vllm": "vllm", "endpoint": "torch"}
"""Which extra of the distribution brings an engine's libraries."""


def engine_of(name: str, checkpoint: Checkpoint) -> str:
    """The engine that runs `checkpoint` where `name` was asked for: an address is an endpoint's, whatever runs the others.

    Raises UsageError for a name that the table lacks, and for the endpoint engine on a checkpoint that has no address.
    """
    if name not in ENGINES:
        raise UsageError(
            f"there is no engine {name!r}{nearest(name, ENGINES)}",
            found=f"engines: {', '.join(ENGINES)}",
            mend=f"--engine {next(iter(ENGINES))}",
        )
    if checkpoint.served is None and name == "endpoint":
        raise UsageError(
            f"the endpoint engine cannot run {checkpoint.name!r}",
            found="a checkpoint of files, not the address of a server",
            mend=("http://HOST:PORT/v1#MODEL in its place", "or leave --engine out"),
        )
    return name if checkpoint.served is None else "endpoint"


def open_engine(name: str, checkpoint: Checkpoint, options: EngineOptions) -> Engine:
    """The engine that `engine_of` names, loaded with `checkpoint`.

    Raises UsageError as it does, and MissingError, naming the extra, when the engine's library is absent.
    """
    name = engine_of(name, checkpoint)
    factory = from_table(ENGINES[name], f"the engine {name!r} cannot start", EXTRA_OF_ENGINE[name])
    engine: Engine = factory(checkpoint, options)
    return engine
