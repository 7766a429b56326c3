"""Protocols: the ways to ask. Each is one file that alone imports its evaluation library, reached through this table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perplexity_lies.errors import from_table
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD

PROTOCOL_RUNNERS = {
    LOGLIKELIHOOD: "perplexity_lies.protocols.loglikelihood:run",
    GENERATION: "perplexity_lies.protocols.generation:run",
}
"""Protocol -> `module:function`, called with (engine, suite, Context)."""


def runner(protocol: str) -> Callable[..., Any]:
    """The function that runs `protocol`. Raises MissingError, naming the extra, when its library is absent."""
    found: Callable[..., Any] = from_table(PROTOCOL_RUNNERS[protocol], f"the protocol {protocol!r} cannot run", "eval")
    return found
