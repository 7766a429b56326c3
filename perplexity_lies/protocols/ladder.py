"""The rungs of the ladder: one item asked in steps, each of which changes one factor (`rungs.LADDER`).

    question, choices with letters, "Answer:"     the one prompt of the first five rungs
    rank_texts -> rank_letters -> constrained -> argmax -> answer -> answer_chat -> thought_chat
                                                            \\-> answer_shots, thought

Rungs that rank share one call of the engine, those that write another, so that a prompt's tokens are computed once for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from perplexity_lies.catalogue.items import Item
from perplexity_lies.catalogue.sources import ItemSource
from perplexity_lies.catalogue.tasks import RungSettings, Suite
from perplexity_lies.engines.base import Engine, GenerateRequest, ScoreRequest
from perplexity_lies.protocols.base import Context, answer_all
from perplexity_lies.protocols.ladder_records import ranked_record, replied_record
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.rungs import DECODED, RANKED, RUNGS

Length = Literal["none", "label", "answer", "thought"]
"""What bounds a reply."""
CUE = "Answer:"
THINK = 'Think step by step. Then end with "Answer: " and the letter of the right choice.\n'
THINK_FREE = 'Think step by step. Then end with "Answer: " and the answer.\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one rung asks of one item: everything by which two rungs can differ."""

    prompt: str
    """Before the chat template."""
    sent: str
    """After it: what the engine encodes."""
    chat: bool
    candidates: tuple[str, ...]
    """What is ranked, or what a constrained reply is held to; else what argmax could answer."""
    held: bool
    budget_tokens: int
    """0 where nothing is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnLadder(RungSettings):
    """What the rungs of the ladder have in common; `catalogue.ladder.Ladder` says what each setting means."""

    over_items: ClassVar[Mapping[str, Any]] = {**RungSettings.over_items, "metric": "acc"}
    flat: ClassVar[tuple[str, ...]] = (*RungSettings.flat, "chance")
    candidates: ClassVar[str] = "labels"
    held: ClassVar[bool] = False
    length: ClassVar[Length] = "answer"
    chat: ClassVar[bool] = False
    few: ClassVar[bool] = False

    labels: Literal["letters", "texts"] = "letters"
    chat_template: bool = False
    max_new_tokens: Annotated[int, Interval(ge=1, le=1_000_000)] = 32
    thought_tokens: Annotated[int, Interval(ge=1, le=1_000_000)] = 256
    shots: Annotated[int, Interval(ge=1, le=1000)] = 3
    extract: str = ""

    def source(self, items: ItemSource | None) -> str:
        asked = items.title if items is not None else "items"
        return f"{asked}, {RUNGS[self.rung].title}" + (f", {self.shots}-shot" if self.few else "")

    @classmethod
    def ask(cls, engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
        group = RUNGS[cls.rung].answers
        together = [rung for rung in RUNGS if RUNGS[rung].answers == group and rung in (*context.rungs, cls.rung)]
        pairs = [
            (item, rung, task)
            for task in suite.tasks
            if task.items is not None and any(rung in task.rungs for rung in together)
            for item in task.items.load(context.mirror, context.limit)
            for rung in together
            if rung in task.rungs
        ]
        return _answered(cls, engine, pairs, suite, context)


def lettered(item: Item) -> str:
    """The item's choices, one a line: `A. fig`."""
    return "\n".join(f"{label}. {text}" for label, text in zip(letters_of(item), item.choices, strict=True))


def letters_of(item: Item) -> tuple[str, ...]:
    """One letter a choice."""
    return tuple(chr(ord("A") + index) for index in range(len(item.choices)))


def prompt_of(settings: OnLadder, item: Item, others: Sequence[Item]) -> str:
    """The question in the ladder's one template; `others` are worked before it."""
    if settings.labels == "texts":
        return item.question
    listed = f"{item.question.strip()}\n" + (f"{lettered(item)}\n" if item.choices else "")
    worked = "".join(f"{prompt_of(settings, other, ())} {wanted_of(settings, other)}\n\n" for other in others)
    if settings.length == "thought":
        return worked + listed + (THINK if item.choices else THINK_FREE)
    return f"{worked}{listed}{CUE}"


def wanted_of(settings: OnLadder, item: Item) -> str:
    """What a right reply says: a letter, or the item's own reference."""
    return letters_of(item)[item.gold] if settings.labels == "letters" and item.choices else item.target


def asked_of(engine: Engine, settings: OnLadder, item: Item, items: Sequence[Item]) -> Asked:
    """What the rung of `settings` asks of `item`, one of the task's `items`."""
    others = [other for other in items if other.id != item.id][: settings.shots] if settings.few else []
    prompt, chat = prompt_of(settings, item, others), settings.chat or settings.chat_template
    sent = engine.render_chat([{"role": "user", "content": prompt}]) if chat else prompt
    in_texts = settings.labels == "texts" or settings.candidates == "texts"
    candidates = item.choices if in_texts else letters_of(item)
    budget = {"none": 0, "answer": settings.max_new_tokens, "thought": settings.thought_tokens}.get(settings.length)
    if budget is None:
        budget = max(len(engine.encode(f" {text}", False)) for text in candidates)
    return Asked(prompt=prompt, sent=sent, chat=chat, candidates=candidates, held=settings.held, budget_tokens=budget)


def score_requests(engine: Engine, asked: Asked) -> list[ScoreRequest]:
    """One for each candidate, after one space where no template ends the prompt."""
    special, gap = not asked.chat, "" if asked.chat else " "
    context = engine.encode(asked.sent, special)
    found = []
    for text in asked.candidates:
        whole = engine.encode(f"{asked.sent}{gap}{text}", special)
        own = whole[len(context) :] if whole[: len(context)] == context else engine.encode(f"{gap}{text}", False)
        found.append(ScoreRequest(context_ids=tuple(context), continuation_ids=tuple(own)))
    return found


def generate_request(engine: Engine, asked: Asked) -> GenerateRequest:
    """The reply that the rung wants."""
    messages = (("user", asked.prompt),) if asked.chat and engine.takes_messages else ()
    return GenerateRequest(
        prompt=asked.sent,
        add_special_tokens=not asked.chat,
        max_new_tokens=asked.budget_tokens,
        messages=messages,
        choices=asked.candidates if asked.held else (),
    )


def why_not_asked(engine: Engine, asked: Asked) -> str:
    """Why the engine cannot ask it; empty where it can."""
    if asked.chat and not (engine.has_chat_template or engine.takes_messages):
        return "the checkpoint has no chat template"
    if not asked.chat and engine.takes_messages:
        return "the server takes chats only, and this rung asks bare text"
    return engine.why_no_choices if asked.held else ""


def _answered(
    kind: type[OnLadder], engine: Engine, pairs: list[Any], suite: Suite, context: Context
) -> list[ItemRecord]:
    """The records of `kind`, after everything that its group wants has been asked in one call."""
    ranks = RUNGS[kind.rung].answers == RANKED
    requests: list[Any] = []
    own: list[tuple[str, Item, OnLadder, Asked, list[Any]]] = []
    items_of: dict[str, list[Item]] = {}
    for item, _, task in pairs:
        known = items_of.setdefault(task.name, [])
        if not known or known[-1] is not item:
            known.append(item)
    for item, rung, task in pairs:
        settings = task.rungs[rung]
        asked = asked_of(engine, settings, item, items_of[task.name])
        wanted: list[Any] = []
        if not why_not_asked(engine, asked):
            wanted = score_requests(engine, asked) if ranks else [generate_request(engine, asked)]
        requests += wanted
        if rung == kind.rung:
            own.append((task.name, item, settings, asked, wanted))
    answer_all(
        context, "ladder: ranking" if ranks else "ladder: replies", requests, engine.score if ranks else engine.generate
    )
    make = ranked_record if ranks else replied_record
    masses = {} if ranks else {r.prompt: context.journal.get(r.key).get("choices_mass") for r in requests if r.choices}
    return [
        make(
            kind.rung, task, item, wanted_of(settings, item), asked, settings,
            [context.journal.get(request.key) for request in wanted], why_not_asked(engine, asked), context.rounding,
            masses.get(asked.sent),
        )
        for task, item, settings, asked, wanted in own
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTexts(OnLadder):
    """The answer texts are ranked."""

    rung: ClassVar[str] = "rank_texts"
    candidates: ClassVar[str] = "texts"
    length: ClassVar[Length] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLetters(OnLadder):
    """The letters are ranked."""

    rung: ClassVar[str] = "rank_letters"
    length: ClassVar[Length] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constrained(OnLadder):
    """The reply is decoded, and can only be a label."""

    rung: ClassVar[str] = "constrained"
    held: ClassVar[bool] = True
    length: ClassVar[Length] = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argmax(OnLadder):
    """The likeliest tokens of the whole vocabulary, as many as the longest label has."""

    rung: ClassVar[str] = "argmax"
    length: ClassVar[Length] = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(OnLadder):
    """A reply that ends when it ends."""

    rung: ClassVar[str] = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShots(OnLadder):
    """After worked examples."""

    rung: ClassVar[str] = "answer_shots"
    few: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought(OnLadder):
    """Step by step before the answer."""

    rung: ClassVar[str] = "thought"
    length: ClassVar[Length] = "thought"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerChat(OnLadder):
    """In the checkpoint's own chat template."""

    rung: ClassVar[str] = "answer_chat"
    chat: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtChat(OnLadder):
    """Step by step, in the chat template."""

    rung: ClassVar[str] = "thought_chat"
    chat: ClassVar[bool] = True
    length: ClassVar[Length] = "thought"


assert {DECODED, RANKED} == {rung.answers for rung in RUNGS.values() if rung.on_ladder}
