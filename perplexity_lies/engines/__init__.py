"""Engines load a checkpoint, score given tokens and write replies.

    open_engine("torch", checkpoint, EngineOptions())  ->  an `Engine` (engines/base.py)

To add an engine, write one file with a subclass of `Engine` and add one row to `ENGINES`. Its module is imported when the
engine is opened, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from perplexity_lies.engines.template import settle_template
from perplexity_lies.errors import UsageError, from_table, nearest

if TYPE_CHECKING:
    from perplexity_lies.checkpoint.lookup import Checkpoint
    from perplexity_lies.engines.base import Engine, EngineOptions


class Listed(NamedTuple):
    """Where an engine lives and what it needs."""

    home: str
    """`module:class`; the class is called with (checkpoint, options)."""
    extra: str
    """The extra of this distribution that installs the engine's libraries."""


ENGINES = {
    "torch": Listed("perplexity_lies.engines.torch:TorchEngine", extra="torch"),
    "vllm": Listed("perplexity_lies.engines.vllm:VllmEngine", extra="vllm"),
    "endpoint": Listed("perplexity_lies.engines.endpoint:EndpointEngine", extra="torch"),
}
"""Every engine by the name that `--engine` takes."""


def engine_of(name: str, checkpoint: Checkpoint) -> str:
    """The engine to use when the user named `name`: a checkpoint at an address always gets `endpoint`.

    Raises UsageError for an unknown name, and for `endpoint` with a checkpoint that has no address.
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
    """Load `checkpoint` into the engine that `engine_of` picks.

    Raises UsageError as `engine_of` does, and MissingError, naming the extra to install, when a library is absent.
    """
    name = engine_of(name, checkpoint)
    listed = ENGINES[name]
    factory = from_table(listed.home, f"the engine {name!r} cannot start", listed.extra)
    engine: Engine = factory(checkpoint, options)
    if engine.tokenizer is not None:
        settle_template(engine.tokenizer, options.chat_template_args)
    return engine
