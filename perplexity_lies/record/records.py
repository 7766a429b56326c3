"""`ItemRecord`: what one protocol said of one item. The only thing the run wing writes and the read wing reads.

Standard library only. Knows nothing of engines, libraries or statistics.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

LOGLIKELIHOOD = "loglikelihood"
GENERATION = "generation"
PROTOCOLS = (LOGLIKELIHOOD, GENERATION)


class Status(enum.StrEnum):
    """Why a record has the score it has. Never NaN, never null, never a silent zero."""

    SCORED = "scored"
    """An answer was found and judged."""
    UNPARSED = "unparsed"
    """The reply ended by itself but held no answer that the extractor knows."""
    TRUNCATED = "truncated"
    """The reply hit its token budget before an answer was found."""
    DEGENERATE = "degenerate"
    """The reply is empty or loops."""
    REFUSED = "refused"
    """The engine could not be asked this item (a prompt longer than the checkpoint's context, say)."""
    ERRORED = "errored"
    """The engine or the library failed on this item; `error` tells how."""


UNMEASURED = (Status.ERRORED, Status.REFUSED)
"""Statuses of records whose score says nothing of the checkpoint: they never pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """One item under one protocol with one seed.

    `item` identifies the item under both protocols; `prompt_sha256` is over what was asked *before* the checkpoint's own
    chat template, so that teacher and student pair although their templates differ.
    """

    task: str
    subject: str = ""
    """Cluster for the bootstrap (an MMLU subject, say); empty where a task has none."""
    item: str
    protocol: str
    """`loglikelihood` or `generation`."""
    seed: int = 0
    prompt: str
    """What was asked, before the chat template."""
    prompt_sha256: str
    status: Status
    score: float
    """In [0, 1], by `metric`. 0.0 unless the library gave credit; read it together with `status`."""
    metric: str
    """The headline metric of the task under this protocol (`acc_norm`, `acc`, `exact_match` ...)."""
    scores: dict[str, float] = field(default_factory=dict)
    """Every metric that the library gave for this item."""
    gold: str
    """The reference answer as text."""
    answer: str = ""
    """Log-likelihood: the choice ranked first by `metric`. Generation: the answer that was extracted."""
    choices: tuple[str, ...] = ()
    choice_loglikelihoods_nats: tuple[float, ...] = ()
    choice_is_greedy: tuple[bool, ...] = ()
    gold_index: int = -1
    """Index of the reference in `choices`; -1 under generation."""
    text: str = ""
    """Generation: the raw reply."""
    finish_reason: str = ""
    """Generation, of this very row: `stop` (end token), `stop_string`, `length` (budget)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated_prompt_tokens: int = 0
    """Tokens cut from the left of the prompt because it did not fit the context."""
    fragile: bool = False
    """Whether the engine's own rounding could have changed the choice ranked first, or a token of the reply."""
    extractor: str = ""
    """Library and version that read the answer, e.g. `evalscope@1.14.1`."""
    error: str = ""

    def to_json(self) -> str:
        """One line of JSON, keys sorted, no NaN."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> ItemRecord:
        """Inverse of `to_json`. Raises ValueError on text that is not a record."""
        raw: Any = json.loads(line)
        if not isinstance(raw, dict):
            raise ValueError(f"a record is a JSON object, found {type(raw).__name__}")
        known = {f.name for f in fields(cls)}
        unknown, lacking = sorted(set(raw) - known), sorted(_REQUIRED - set(raw))
        if unknown or lacking:
            raise ValueError(f"unknown fields {unknown}, missing fields {lacking}")
        raw["status"] = Status(raw["status"])
        for name in ("choices", "choice_loglikelihoods_nats", "choice_is_greedy"):
            raw[name] = tuple(raw.get(name, ()))
        return cls(**raw)


_REQUIRED = {"task", "item", "protocol", "prompt", "prompt_sha256", "status", "score", "metric", "gold"}


def sha256_text(text: str) -> str:
    """Hex digest of UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_records(path: Path) -> Iterator[ItemRecord]:
    """Records of one JSONL file, in file order. Raises ValueError naming the line that is not a record."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield ItemRecord.from_json(line)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error


def dump_records(records: Iterable[ItemRecord]) -> str:
    """JSONL text of records."""
    return "".join(record.to_json() + "\n" for record in records)
