"""What the artifact guard examines: an engine, the probes it is asked, and what a check says.

Questions go through `score`, `generate`, `encode` and `render_chat` alone, so that any engine can be asked. Where the engine
shows its model, a `Reference` stands beside it, and a greedy reply is asked for over its sure tokens only: those that the
reference finds ahead of the second best by more than rounding can move.

Knows nothing of which questions are asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perplexity_lies.engines.base import Engine, GenerateRequest, GenerateResult, Message, ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from perplexity_lies.guard.reference import Greedy, Reference

REPLY_TOKENS = 6
"""Longest reply to a probe."""
MOST_PROMPT_TOKENS = 256
CONTINUATION_TOKENS = 4
"""Tokens of a continuation that is cut off a probe's own text."""

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
"""Short, so that what follows a fork is soon read; of four lengths, so that each is a fork of its own."""
OWN_TOKENS, OWN_HEADER_TOKENS = 12, 24
"""Length of texts made up for a tokenizer that cannot read the above, and of the beginning that some share."""
MANIFEST_DECIMALS = 6
"""As every number of a comparison is rounded."""
SHORT_PROBES = 3
"""Of each kind in the short form; the full form takes all."""

UNREADABLE = "\ufffd"
"""What a tokenizer writes for bytes that are no text."""


class CannotCheck(Exception):
    """Why a check has nothing to say of this engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What rounding may do; larger is a fault."""

    nats: float
    """Between two log-likelihoods of one continuation."""
    cached_nats: float
    """Between two log-probabilities of one token, by the model's own cache and by a full forward pass."""
    cached_median: bool = False
    """Whether that is asked of the median token only, not of every one."""
    margin: float
    """A token ahead of the second best by no more than this, in logits, is not a sure one."""
    replies: float = 0.0
    """Share of replies that may differ, where nobody can say which tokens are sure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and what it measured."""

    name: str
    passed: bool | None
    """None where it was not checked; `detail` says why."""
    measured: float | None
    tolerance: float | None
    detail: str
    """A plain sentence."""

    @classmethod
    def counted(cls, name: str, wrong: int, most: float, detail: str) -> Check:
        """A check that counts what went wrong, and passes up to `most`."""
        return cls(name=name, passed=wrong <= most, measured=float(wrong), tolerance=most, detail=detail)

    def describe(self) -> dict[str, dict[str, Any]]:
        """For the manifest: name -> the rest."""
        facts = asdict(self)
        for name in ("measured", "tolerance"):
            facts[name] = None if facts[name] is None else round(facts[name], MANIFEST_DECIMALS)
        return {facts.pop("name"): facts}


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, as the generation protocol renders it, and what is sure of its greedy reply."""

    prompt: str
    ids: tuple[int, ...]
    add_special_tokens: bool
    max_prompt_tokens: int | None
    greedy: Greedy | None
    """By the reference; None without one."""
    sure: int
    """Tokens of the reply that rounding cannot move."""

    def request(self, tokens: int | None = None) -> GenerateRequest:
        """Ask for `tokens` tokens, all sure ones by default."""
        return GenerateRequest(
            prompt=self.prompt,
            add_special_tokens=self.add_special_tokens,
            max_new_tokens=self.sure if tokens is None else tokens,
            max_prompt_tokens=self.max_prompt_tokens,
        )


class Subject:
    """An engine under examination, and what it has said of single requests so far."""

    def __init__(
        self,
        engine: Engine,
        reference: Reference | None,
        tolerance: Tolerance,
        *,
        full: bool,
        prompts: Sequence[str] = (),
    ) -> None:
        self.engine, self.reference, self.tolerance = engine, reference, tolerance
        most = None if full else SHORT_PROBES
        self._alone: dict[str, Any] = {}
        self._greedy: dict[tuple[int, ...], Greedy] = {}
        self.most_prompt_tokens = min(MOST_PROMPT_TOKENS, engine.context_tokens - REPLY_TOKENS - CONTINUATION_TOKENS)
        texts, items = TEXTS[:most], tuple(HEADER + item for item in ITEMS[:most])
        if engine.tokenizer is not None and _reads_poorly(engine.encode(texts[0])):
            texts, items = self._own_words(len(texts), 0), self._own_words(len(items), OWN_HEADER_TOKENS)
        self.texts, self.items = (*texts, *prompts), items

    def _own_words(self, count: int, common_tokens: int) -> tuple[str, ...]:
        """Texts of the tokenizer's own tokens, drawn from a fixed seed; the first `common_tokens` are the same in all."""
        tokenizer, rng = self.engine.tokenizer, random.Random(0)
        ordinary = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
        common = rng.choices(ordinary, k=common_tokens)
        return tuple(self.decode([*common, *rng.choices(ordinary, k=OWN_TOKENS)]) for _ in range(count))

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Results in the order of `requests`, asked as one list. Raises CannotCheck where one is missing."""
        found = {result.key: result for batch in self.engine.score(requests) for result in batch}
        for result in found.values():
            if result.error:
                raise CannotCheck(f"the engine gave no log-likelihood of a probe: {result.error}")
        return [found[request.key] for request in requests]

    def reply(self, requests: Sequence[GenerateRequest]) -> list[GenerateResult]:
        """The same of replies. Raises CannotCheck where one was refused."""
        found = {result.key: result for batch in self.engine.generate(requests) for result in batch}
        for result in found.values():
            if result.error:
                raise CannotCheck(f"the engine gave no reply to a probe: {result.error}")
        return [found[request.key] for request in requests]

    def score_alone(self, request: ScoreRequest) -> ScoreResult:
        """One request, asked once with nobody beside it."""
        if request.key not in self._alone:
            self._alone[request.key] = self.score([request])[0]
        found: ScoreResult = self._alone[request.key]
        return found

    def reply_alone(self, request: GenerateRequest) -> GenerateResult:
        """The same of a reply."""
        if request.key not in self._alone:
            self._alone[request.key] = self.reply([request])[0]
        found: GenerateResult = self._alone[request.key]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply, as engines decode it."""
        text: str = self.engine.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def encode(self, text: str, add_special_tokens: bool | None = None) -> tuple[int, ...]:
        """The engine's token ids. Raises CannotCheck where it has no tokenizer."""
        if self.engine.tokenizer is None:
            raise CannotCheck("the tokenizer of this engine is not known here")
        return tuple(self.engine.encode(text, add_special_tokens))

    def probe(self, text: str, most_tokens: int | None = None, *, chat: bool = True) -> Probe:
        """`text` asked as the generation protocol asks a user's message (as it stands without `chat`), cut from the left
        where it is too long."""
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
        if self.reference is None:
            return None
        if ids not in self._greedy:
            self._greedy[ids] = self.reference.greedy(ids, REPLY_TOKENS)
        return self._greedy[ids]

    def encoded(self, text: str) -> tuple[int, ...]:
        """Token ids as the log-likelihood protocol makes them. Raises CannotCheck for a text of too few."""
        ids = self.encode(text)[: self.most_prompt_tokens]
        if len(ids) <= CONTINUATION_TOKENS:
            raise CannotCheck(f"the tokenizer makes only {len(ids)} tokens of {text!r}")
        return ids

    def expected(self, probe: Probe) -> tuple[str, str, int] | None:
        """What the sure part of a reply must be by the reference: text, finish reason, tokens."""
        if probe.greedy is None or self.reference is None:
            return None
        ids = probe.greedy.ids[: probe.sure]
        return self.decode(ids), "stop" if ids[-1] in self.reference.end_ids else "length", len(ids)


def _reads_poorly(ids: Sequence[int]) -> bool:
    """Whether a text is mostly one token, the unknown one: a vocabulary of a small world."""
    return 3 * max(map(list(ids).count, set(ids)), default=0) > len(ids)


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def _sure(greedy: Greedy, margin: float) -> int:
    return next((at for at, found in enumerate(greedy.margins) if found <= margin), len(greedy.margins))
