"""The ways to ask an item, as a table: a rung is a row here and a file in `protocols/`.

    RUNGS["generation"].title  ->  "generation"

Comparison, report, gate and terminal go through this table in its order, and through `CONTRASTS`: the hidden gap is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

LOGLIKELIHOOD = "loglikelihood"
GENERATION = "generation"
RANKED, DECODED = "ranked", "decoded"
"""Answers that rungs of the ladder share: log-likelihoods, and replies."""


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
    after: str = ""
    """On the ladder: the rung that this one goes on from; empty for the first, and for a rung that is not on the ladder."""
    factor: str = ""
    """On the ladder: the one thing that is otherwise than on `after`, in words."""
    answers: str = ""
    """Rungs with one name here share their answers: what one of them has asked, another need not ask."""

    @property
    def on_ladder(self) -> bool:
        """Whether the rung is part of the ladder."""
        return bool(self.answers)


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
    Rung(
        name="rank_texts", title="ranked texts", short="texts", clause="ranking the answer texts", replies=False,
        home="perplexity_lies.protocols.ladder:RankTexts", colour="#2f8fd0", symbol="circle", answers=RANKED,
    ),
    Rung(
        name="rank_letters", title="ranked letters", short="letters", clause="ranking the letters", replies=False,
        home="perplexity_lies.protocols.ladder:RankLetters", colour="#3a9d5d", symbol="triangle-up", answers=RANKED,
        after="rank_texts", factor="the candidates: letters in place of answer texts",
    ),
    Rung(
        name="constrained", title="constrained decoding", short="held", clause="held to the candidates,", replies=True,
        home="perplexity_lies.protocols.ladder:Constrained", colour="#8a9a1f", symbol="diamond", answers=DECODED,
        after="rank_letters", factor="the choice: token by token in place of by whole candidates",
    ),
    Rung(
        name="argmax", title="argmax", short="argmax", clause="by its likeliest tokens", replies=True,
        home="perplexity_lies.protocols.ladder:Argmax", colour="#b8860b", symbol="pentagon", answers=DECODED,
        after="constrained", factor="the vocabulary: every token in place of the candidates' own",
    ),
    Rung(
        name="answer", title="free answer", short="answer", clause="answering freely", replies=True,
        home="perplexity_lies.protocols.ladder:Answer", colour="#d9601a", symbol="square", answers=DECODED,
        after="argmax", factor="the length: until the reply ends in place of the candidates' length",
    ),
    Rung(
        name="answer_shots", title="free answer after examples", short="shots", clause="after examples,", replies=True,
        home="perplexity_lies.protocols.ladder:AnswerShots", colour="#a0522d", symbol="hexagon", answers=DECODED,
        after="answer", factor="the shots: worked examples before the question",
    ),
    Rung(
        name="thought", title="free chain of thought", short="thought", clause="thinking first", replies=True,
        home="perplexity_lies.protocols.ladder:Thought", colour="#c2407e", symbol="star", answers=DECODED,
        after="answer", factor="the thought: step by step before the answer",
    ),
    Rung(
        name="answer_chat", title="free answer in chat", short="chat", clause="answering in its chat template", replies=True,
        home="perplexity_lies.protocols.ladder:AnswerChat", colour="#b5301f", symbol="cross", answers=DECODED,
        after="answer", factor="the template: the checkpoint's own chat template in place of bare text",
    ),
    Rung(
        name="thought_chat", title="chain of thought in chat", short="chat thought", clause="thinking in chat", replies=True,
        home="perplexity_lies.protocols.ladder:ThoughtChat", colour="#7b3fa0", symbol="x", answers=DECODED,
        after="answer_chat", factor="the thought: step by step before the answer",
    ),
)  # fmt: skip
"""In the order in which they are asked and shown: the two protocols, then the ladder (`trunk`) with its side branches."""

RUNGS = {rung.name: rung for rung in ROWS}
"""Rung by name."""


LADDER = tuple(rung for rung in ROWS if rung.on_ladder)
"""The rungs of the ladder: each differs from its `after` in one factor."""


def trunk(there: Iterable[str]) -> list[Rung]:
    """The path up the ladder through the rungs that are `there`, from the first to the last.

    A rung that is left out is stepped over: the step then has the factors of both. The last rung is the furthest from the first;
    of two equally far ones, the later in the table.
    """
    known = set(there)
    paths = {
        rung.name: [other for other in _below(rung) if other.name in known] for rung in LADDER if rung.name in known
    }
    return max(reversed(paths.values()), key=len, default=[])


def _below(rung: Rung) -> list[Rung]:
    """The rungs from the first of the ladder up to `rung`."""
    return [*(_below(RUNGS[rung.after]) if rung.after else []), rung]


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
