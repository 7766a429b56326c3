"""`Extractor`: finds the answer in a reply and judges it. Why a reading has the score it has is told here, once for all.

An extractor is a subclass with a name, a version and `find`. A change of what it finds, or of how it judges, is a new version.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perplexity_lies.errors import UsageError
from perplexity_lies.record.records import UNMEASURED, ItemRecord, Reading, Status

LOOP_WORDS = 16
"""Longest period, in words, that counts as a loop."""

EXACT_MATCH = "exact_match"

THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<thoughts>": "</thoughts>",
    "<reason>": "</reason>",
    "<analysis>": "</analysis>",
    "<scratchpad>": "</scratchpad>",
    "<|channel|>analysis": "<|channel|>final",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
"""How reasoning checkpoints open a thought -> how they close it."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer in a reply."""

    answer: str
    rule: str
    """Which rule found it, in words: `last match`."""
    span: tuple[int, int]
    """Where it stands in the reply, in characters."""


class Extractor(abc.ABC):
    """Reads one record after another. Raises UsageError, when it is made, for an argument that it cannot use."""

    name: ClassVar[str]
    """As `EXTRACTORS` has it."""
    version: ClassVar[int]
    metric: ClassVar[str] = EXACT_MATCH

    def __init__(self, argument: str, settings: Mapping[str, Any]) -> None:
        """`argument` is what stood after NAME=, `settings` what the suite set on the rung of the task."""
        if argument:
            raise UsageError(
                f"the extractor {self.name!r} takes no argument", found=argument[:80], mend=f"--extractor {self.name}"
            )

    @property
    def label(self) -> str:
        """Name and version, as a reading bears it: `number@1`."""
        return f"{self.name}@{self.version}"

    @abc.abstractmethod
    def find(self, record: ItemRecord) -> Found | None:
        """The answer in `record.text`; None where there is none."""

    def judge(self, answer: str, record: ItemRecord) -> float:
        """Score in [0, 1] of an answer that was found: by default 1 where it is the reference, to the letter."""
        return float(answer == record.gold)

    def shortest_right(self, gold: str) -> str:
        """A short reply that is right; by it, items that no reply within the budget can answer are found."""
        return gold

    def read(self, record: ItemRecord) -> Reading:
        """What this extractor makes of a record's reply. A reply that could not be had stays without a score."""
        if record.status in UNMEASURED:
            return Reading(extractor=self.label, status=record.status, score=0.0, metric=self.metric)
        found = None if cut_in_thought(record.text, record.finish_reason, record.reply_prefix) else self.find(record)
        score = self.judge(found.answer, record) if found is not None else 0.0
        return Reading(
            extractor=self.label,
            status=status_of(
                record.text,
                record.finish_reason,
                found.answer if found is not None else "",
                prefix=record.reply_prefix,
                known_tokens=bool(record.token_ids),
            ),
            score=score,
            metric=self.metric,
            scores={self.metric: score},
            answer=found.answer if found is not None else "",
            rule=found.rule if found is not None else "",
            span=found.span if found is not None else None,
        )


def status_of(text: str, finish_reason: str, answer: str, *, prefix: str = "", known_tokens: bool = True) -> Status:
    """Why a reply has the score it has. An answer that was found counts as scored, even in a reply cut by its budget.

    In a reply that was cut inside a thought (`prefix`: what the prompt had opened of it) nothing is an answer. A reply of
    which nothing came but that used up its budget is cut as well, where a server hides what it wrote (`known_tokens`).
    """
    if cut_in_thought(text, finish_reason, prefix):
        return Status.TRUNCATED if finish_reason == "length" else Status.UNPARSED
    if not text.strip():
        hidden = finish_reason == "length" and not text and not known_tokens
        return Status.TRUNCATED if hidden else Status.DEGENERATE
    if answer:
        return Status.SCORED
    if finish_reason == "length":
        return Status.DEGENERATE if loops(text) else Status.TRUNCATED
    return Status.UNPARSED


def cut_in_thought(text: str, finish_reason: str, prefix: str = "") -> bool:
    """Whether a reply was cut, by its budget or at a stop string, before its last thought was closed."""
    if finish_reason not in ("length", "stop_string"):
        return False
    whole = (prefix + text).lower()
    return any(whole.rfind(opening.lower()) > whole.rfind(closing.lower()) for opening, closing in THOUGHTS.items())


def opened_thought(prompt: str) -> str:
    """The thought that a prompt opens for the reply, as some chat templates do: `<think>`; empty where it opens none."""
    end = prompt.rstrip()
    return next((opening for opening in THOUGHTS if end.endswith(opening)), "")


def loops(text: str) -> bool:
    """Whether the second half of a text repeats one period of at most `LOOP_WORDS` words."""
    words = text.split()
    tail = words[len(words) // 2 :]
    if len(tail) < 2 * LOOP_WORDS:
        return False
    return any(
        all(tail[i] == tail[i - period] for i in range(period, len(tail))) for period in range(1, LOOP_WORDS + 1)
    )


def letter(index: int) -> str:
    """The letter of a choice: `A` for the first."""
    return chr(ord("A") + index)
