"""What the guard's checks share: the engine under examination (`Subject`), its prompts (`Probe`), an outcome (`Check`).

Checks use only `score`, `generate`, `encode` and `render_chat`, so every engine can be checked. For an engine that shows its
model there is also a `Reference`, and replies are compared over their sure tokens only: greedy tokens whose lead over the
second best is more than rounding can move.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from perplexity_lies.engines.base import Engine, GenerateRequest, GenerateResult, Message, ScoreRequest, ScoreResult
from perplexity_lies.record.manifest import GuardFacts, Rounding

if TYPE_CHECKING:
    from perplexity_lies.guard.reference import Greedy, Reference

T = TypeVar("T")

REPLY_TOKENS = 6
"""Most tokens of a reply to a probe."""
MOST_PROMPT_TOKENS = 256
CONTINUATION_TOKENS = 4
"""Last tokens of a text that are scored after the rest of it."""

TEXTS = (
    "the river ran past the mill and under the old stone bridge",
    "she put the letter on the table and went out into the garden",
    "two and three are five, and four and four are eight",
    "at night the lamps were lit along the whole of the long street",
    "a ship came into the harbor with salt, wool and a letter for him",
    "the price of bread rose in the spring and fell after the harvest",
    "he read the first page, closed the book and looked at the clock",
    "rain fell on the hills all day, so the road to the village was shut",
)
HEADER = "q: what is made of wood? a: the old table. q: what is made of stone? a: the bridge. q: what is made of "
ITEMS = ("tin", "iron", "glass", "copper")
"""Short, so that few tokens lie between a fork and the scored ones; of four lengths, so that each is a fork of its own."""
OWN_TOKENS, OWN_HEADER_TOKENS = 12, 24
"""For a tokenizer that cannot read the texts above: tokens of a made-up text, and of the header that made-up items share."""
MANIFEST_DECIMALS = 6
"""Numbers of a comparison are rounded in the same way."""
SHORT_PROBES = 3
"""Texts, and items, of the short form; the full form takes all."""

UNREADABLE = "\ufffd"
"""What a tokenizer writes for bytes that are not UTF-8."""


class CannotCheck(Exception):
    """Why a check cannot be made of this engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance(Rounding):
    """Differences up to these come from rounding; a larger one is a fault.

    `nats` holds between two log-likelihoods of one continuation. A token whose lead, in logits, is at most `margin` is not sure.
    """

    cached_nats: float
    """Between the log-probabilities of one token from the model's own cache and from a full forward pass."""
    cached_median: bool = False
    """Whether `cached_nats` must hold for the median token only."""
    typical_nats: float = 0.0
    """Below float32: for the median of many tokens or continuations, of which single ones may be far out."""
    strange: float = 0.0
    """Share of the tokens of long greedy replies that may lie more than `margin` behind the likeliest."""
    replies: float = 0.0
    """Share of replies that may differ; above 0 where the sure tokens are unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of one check."""

    name: str
    passed: bool | None
    """None where the check could not be made; `detail` says why."""
    measured: float | None
    """In nats, or a count of what went wrong."""
    tolerance: float | None
    """The largest `measured` that passes."""
    detail: str
    """One sentence: what was done and what came out."""

    @classmethod
    def counted(cls, name: str, wrong: int, most: float, detail: str) -> Check:
        """A check that counts what went `wrong` and passes up to `most`."""
        return cls(name=name, passed=wrong <= most, measured=float(wrong), tolerance=most, detail=detail)

    def describe(self) -> dict[str, GuardFacts]:
        """What the manifest records: name -> the rest."""
        measured, tolerance = _rounded(self.measured), _rounded(self.tolerance)
        return {self.name: GuardFacts(passed=self.passed, measured=measured, tolerance=tolerance, detail=self.detail)}


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, rendered as for generation, and how many tokens of its greedy reply are sure."""

    prompt: str
    ids: tuple[int, ...]
    add_special_tokens: bool
    max_prompt_tokens: int | None
    greedy: Greedy | None
    """The reference's reply; None without a reference."""
    sure: int
    """First tokens of the reply that rounding cannot change."""

    def request(self, tokens: int | None = None) -> GenerateRequest:
        """A request for a reply of `tokens` tokens; by default, as many as are sure."""
        return GenerateRequest(
            prompt=self.prompt,
            add_special_tokens=self.add_special_tokens,
            max_new_tokens=self.sure if tokens is None else tokens,
            max_prompt_tokens=self.max_prompt_tokens,
        )


class Subject:
    """An engine under examination; remembers its results for requests run alone."""

    def __init__(
        self,
        engine: Engine,
        reference: Reference | None,
        tolerance: Tolerance,
        *,
        full: bool,
        prompts: Sequence[str] = (),
        beginnings_told: bool = False,
    ) -> None:
        self.engine, self.reference, self.tolerance = engine, reference, tolerance
        self.beginnings_told = beginnings_told
        most = None if full else SHORT_PROBES
        self._alone: dict[str, Any] = {}
        self._greedy: dict[tuple[int, ...], Greedy] = {}
        self.most_prompt_tokens = min(MOST_PROMPT_TOKENS, engine.context_tokens - REPLY_TOKENS - CONTINUATION_TOKENS)
        texts, items = TEXTS[:most], tuple(HEADER + item for item in ITEMS[:most])
        if engine.tokenizer is not None and _reads_poorly(engine.encode(texts[0])):
            texts, items = self._own_words(len(texts), 0), self._own_words(len(items), OWN_HEADER_TOKENS)
        self.texts, self.items = (*texts, *prompts), items

    def _own_words(self, count: int, common_tokens: int) -> tuple[str, ...]:
        """`count` texts of tokens drawn from the vocabulary with a fixed seed; their first `common_tokens` are equal."""
        tokenizer, rng = self.engine.tokenizer, random.Random(0)
        ordinary = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
        common = rng.choices(ordinary, k=common_tokens)
        return tuple(self.decode([*common, *rng.choices(ordinary, k=OWN_TOKENS)]) for _ in range(count))

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score `requests` in one call; results in their order. Raises CannotCheck if one has an error."""
        found = {result.key: result for batch in self.engine.score(requests) for result in batch}
        for result in found.values():
            if result.error:
                raise CannotCheck(f"the engine gave no log-likelihood of a probe: {result.error}")
        return [found[request.key] for request in requests]

    def reply(self, requests: Sequence[GenerateRequest]) -> list[GenerateResult]:
        """Generate for `requests` in one call; results in their order. Raises CannotCheck if one has an error."""
        found = {result.key: result for batch in self.engine.generate(requests) for result in batch}
        for result in found.values():
            if result.error:
                raise CannotCheck(f"the engine gave no reply to a probe: {result.error}")
        return [found[request.key] for request in requests]

    def score_alone(self, request: ScoreRequest) -> ScoreResult:
        """Score one request in a call of its own; a second time, from memory."""
        if request.key not in self._alone:
            self._alone[request.key] = self.score([request])[0]
        found: ScoreResult = self._alone[request.key]
        return found

    def reply_alone(self, request: GenerateRequest) -> GenerateResult:
        """Generate for one request in a call of its own; a second time, from memory."""
        if request.key not in self._alone:
            self._alone[request.key] = self.reply([request])[0]
        found: GenerateResult = self._alone[request.key]
        return found

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call for this name."""
        if name not in self._alone:
            self._alone[name] = make()
        found: T = self._alone[name]
        return found

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """Text of a reply, decoded as engines do; `special_tokens` are left out unless they are wanted."""
        text: str = self.engine.tokenizer.decode(
            list(ids), skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def encode(self, text: str, add_special_tokens: bool | None = None) -> tuple[int, ...]:
        """The engine's token ids. Raises CannotCheck if its tokenizer is unknown."""
        if self.engine.tokenizer is None:
            raise CannotCheck("the tokenizer of this engine is not known here")
        return tuple(self.engine.encode(text, add_special_tokens))

    def probe(self, text: str, most_tokens: int | None = None, *, chat: bool = True) -> Probe:
        """A probe of `text`: with `chat` as a user's message, rendered as for generation; without, as it stands.

        Longer than `most_tokens` (or what the subject allows), it is cut from the left.
        """
        if self.engine.takes_messages:
            raise CannotCheck("the server renders the chat: what its model reads is not known here")
        prompt = self.engine.render_chat([user(text)]) if chat else text
        add_special_tokens = not (chat and self.engine.has_chat_template)
        whole = self.encode(prompt, add_special_tokens)
        most = min(most_tokens or self.most_prompt_tokens, self.most_prompt_tokens)
        ids = whole[-most:]
        greedy = self._greedy_of(ids)
        sure = REPLY_TOKENS if greedy is None else _sure(greedy, self.tolerance.margin)
        return Probe(prompt, ids, add_special_tokens, most if len(whole) > most else None, greedy, sure)

    def _greedy_of(self, ids: tuple[int, ...]) -> Greedy | None:
        """The reference's greedy reply to a prompt; a second time, from memory."""
        if self.reference is None:
            return None
        if ids not in self._greedy:
            self._greedy[ids] = self.reference.greedy(ids, REPLY_TOKENS)
        return self._greedy[ids]

    def encoded(self, text: str) -> tuple[int, ...]:
        """Token ids, encoded as for log-likelihood. Raises CannotCheck for a text of too few tokens."""
        ids = self.encode(text)[: self.most_prompt_tokens]
        if len(ids) <= CONTINUATION_TOKENS:
            raise CannotCheck(f"the tokenizer makes only {len(ids)} tokens of {text!r}")
        return ids

    def expected(self, probe: Probe) -> tuple[str, str, int] | None:
        """What the sure tokens of the reply must give: text, finish reason, number of tokens. None without a reference."""
        if probe.greedy is None or self.reference is None:
            return None
        ids = probe.greedy.ids[: probe.sure]
        return self.decode(ids), "stop" if ids[-1] in self.reference.end_ids else "length", len(ids)


def _reads_poorly(ids: Sequence[int]) -> bool:
    """Whether more than a third of a text is one token, most likely `unk`: the vocabulary is too small for the text."""
    return 3 * max(map(list(ids).count, set(ids)), default=0) > len(ids)


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, MANIFEST_DECIMALS)


def _sure(greedy: Greedy, margin: float) -> int:
    """First tokens of a greedy reply whose lead is above `margin`."""
    return next((at for at, found in enumerate(greedy.margins) if found <= margin), len(greedy.margins))
