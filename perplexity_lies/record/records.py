"""`ItemRecord`: what one rung heard of one item. `Reading`: what one extractor made of it.

The record keeps what the checkpoint said (reply, token ids, log-likelihoods) apart from how it was read, so that a stored
reply can be read again by another extractor, without an engine. The first reading is the headline: its status and score
enter the gaps. This is all that the run wing writes and the read wing reads; it needs neither torch nor pandas.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perplexity_lies.checked import Checked, adapter


class Status(enum.StrEnum):
    """Why a reading has the score it has. Never NaN, never null, never a silent zero."""

    SCORED = "scored"
    """An answer was found and judged."""
    UNPARSED = "unparsed"
    """The reply ended by itself but held no answer that the extractor knows."""
    TRUNCATED = "truncated"
    """The reply hit its token budget before an answer was found, or inside a thought that it had not closed."""
    DEGENERATE = "degenerate"
    """The reply is empty or loops."""
    REFUSED = "refused"
    """The engine could not be asked this item (a prompt longer than the checkpoint's context, say)."""
    ERRORED = "errored"
    """The engine or the library failed on this item; the record's `error` tells how."""


FALLBACK = "fallback"
"""How the rule of a reading begins whose answer was not given in the form that was asked for: the last capital letter, say."""

UNMEASURED = (Status.ERRORED, Status.REFUSED)
"""Statuses whose score says nothing of the checkpoint: they never pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Checked):
    """What one extractor read in a reply, or what ranking the choices came to."""

    extractor: str
    """Name and version: `evalscope@1.14.1`, `pattern@1`."""
    status: Status
    score: float
    """In [0, 1], by `metric`; 0.0 unless the extractor gave credit. Read it together with `status`."""
    metric: str
    """`acc_norm`, `accuracy`, `exact_match` ..."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Every metric that the library gave."""
    answer: str = ""
    """What was read as the answer; by log-likelihood the choice ranked first."""
    rule: str = ""
    """Which rule found it (`last match`); empty where the library does not tell.

    It begins with `fallback` where the answer was not given in the form that was asked for.
    """
    span: tuple[int, int] | None = None
    """Where in the reply it stands, in characters; None where it does not stand there as it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord(Checked):
    """One item on one rung with one seed.

    `item` identifies the item on every rung; `prompt_sha256` is over what was asked *before* the checkpoint's own chat
    template, so that teacher and student pair although their templates differ.
    """

    task: str
    subject: str = ""
    """Its cluster, for the intervals (an MMLU subject, say); empty where a task has none."""
    item: str
    rung: str
    """A name in `rungs.RUNGS`."""
    seed: int = 0
    prompt: str
    """What was asked, before the chat template."""
    prompt_sha256: str
    gold: str
    """The reference answer as text."""
    choices: tuple[str, ...] = ()
    gold_index: int = -1
    """Index of the reference in `choices`; -1 where there are none."""
    readings: tuple[Reading, ...]
    """One or more; the first is the headline."""
    choice_loglikelihoods_nats: tuple[float, ...] = ()
    """One a choice, where choices were ranked."""
    choice_is_greedy: tuple[bool, ...] = ()
    text: str = ""
    """The raw reply, where one was written."""
    reply_prefix: str = ""
    """What the prompt had opened of the reply: `<think>` where the chat template ends in one."""
    token_ids: tuple[int, ...] = ()
    """The reply as the checkpoint wrote it; empty where a server does not tell."""
    finish_reason: str = ""
    """Why this very row ended: `stop` (end token), `stop_string`, `length` (budget)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated_prompt_tokens: int = 0
    """Tokens cut from the left of the prompt because it did not fit the context."""
    beyond_context_tokens: int = 0
    """Tokens of prompt and reply at positions beyond the checkpoint's stated context."""
    label_mass: float | None = None
    """Where the answer would begin: the probability of all tokens that begin a valid label; None where it is not known."""
    fragile: bool = False
    """Whether the engine's own rounding could have changed the choice ranked first, or a token of the reply."""
    bos_before_template: bool = False
    """Whether the tokenizer put a BOS before a chat template that writes none, as lm-eval asks; a reply is asked without."""
    never_right: str = ""
    """Why no checkpoint could have this item right: a reference longer than the budget, say; empty where one could."""
    error: str = ""

    def __post_init__(self) -> None:
        if not self.readings:
            raise ValueError("a record has at least one reading")

    @property
    def headline(self) -> Reading:
        """The reading whose score enters the gaps."""
        return self.readings[0]

    @property
    def status(self) -> Status:
        """The headline's."""
        return self.headline.status

    @property
    def score(self) -> float:
        """The headline's."""
        return self.headline.score

    @property
    def measured(self) -> bool:
        """Whether the score says anything of the checkpoint."""
        return self.status not in UNMEASURED

    def to_json(self) -> str:
        """One line of JSON: keys sorted, no NaN, fields at their default left out."""
        kept = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }
        kept["readings"] = [dataclasses.asdict(reading) for reading in self.readings]
        return json.dumps(kept, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> ItemRecord:
        """Inverse of `to_json`. Raises ValueError on text that is not a record."""
        found: ItemRecord = adapter(typing.cast(Any, cls)).validate_json(line)
        return found


def read_records(path: Path) -> Iterator[ItemRecord]:
    """Records of one JSONL file, in file order. Raises ValueError naming the line that is not a record."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield ItemRecord.from_json(line)
            except ValueError as error:
                raise ValueError(f"{path.name}:{number}: {' '.join(str(error).split())[:300]}") from error


def dump_records(records: Iterable[ItemRecord]) -> str:
    """JSONL text of records."""
    return "".join(record.to_json() + "\n" for record in records)
