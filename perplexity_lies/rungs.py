"""The ways to ask an item, as a table: a rung is a row here and a file in `protocols/`.

    RUNGS["generation"].title  ->  "generation"

Comparison, report, gate and terminal go through this table in its order, and through `CONTRASTS`: the hidden gap is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

LOGLIKELIHOOD = "loglikelihood"
GENERATION = "generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to ask."""

    name: str
    """As suites, records and `--rungs` have it."""
    title: str
    """In a sentence or over a table: `log-likelihood`."""
    short: str
    """Where there is little room: `log-lik`."""
    clause: str
    """What the checkpoint was made to do, before `the student is ...`: `by log-likelihood`, `asked to generate,`."""
    replies: bool
    """Whether the checkpoint writes a reply; otherwise it ranks answers that are given."""
    home: str
    """`module:class` of the rung's settings and of the function that asks."""
    colour: str
    """Colour of its points and lines, told apart with any colour vision."""
    symbol: str
    """plotly's name of its marker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The gap on one rung minus the gap on another: what the second does not show."""

    name: str
    title: str
    of: str
    minus: str
    colour: str
    symbol: str


ROWS = (
    Rung(
        name=LOGLIKELIHOOD, title="log-likelihood", short="log-lik", clause="by log-likelihood", replies=False,
        home="perplexity_lies.protocols.loglikelihood:Loglikelihood", colour="#2f8fd0", symbol="circle",
    ),
    Rung(
        name=GENERATION, title="generation", short="gen.", clause="asked to generate,", replies=True,
        home="perplexity_lies.protocols.generation:Generation", colour="#d9601a", symbol="square",
    ),
)  # fmt: skip
"""In the order in which they are asked and shown."""

RUNGS = {rung.name: rung for rung in ROWS}
"""Rung by name."""


def in_order(by_rung: Mapping[str, T]) -> dict[str, T]:
    """The same by rung in the order of the table. Raises ValueError for a rung that it lacks."""
    unknown = set(by_rung) - set(RUNGS)
    if unknown:
        raise ValueError(f"there is no rung {sorted(unknown)[0]!r}; rungs: {', '.join(RUNGS)}")
    return {name: by_rung[name] for name in RUNGS if name in by_rung}


HIDDEN_GAP = Contrast(
    name="hidden gap", title="hidden gap", of=GENERATION, minus=LOGLIKELIHOOD, colour="#8b6fc4", symbol="diamond"
)
CONTRASTS = (HIDDEN_GAP,)
