"""Prompts and replies for a page: chunks of gzip in base64, the most telling items first, until the page is full.

    texts = look(comparison)
    fill(texts, comparison, room_bytes=12_000_000)
    texts.chunks     for `<script>` elements; the browser inflates one when an item in it is shown

Records are read from the run directories one at a time; only the compressed chunks are kept. A text longer than
`LONGEST_CHARACTERS` is `[beginning, number of characters left out, end]`.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.texts import Glance, glances, record_at, why_no_texts
from perplexity_lies.record.records import ItemRecord, Reading
from perplexity_lies.record.store import open_run
from perplexity_lies.rungs import RUNGS
from reports.telling import telling_order

CHUNK_CHARACTERS = 250_000
"""Texts in one chunk, before compression: small enough to inflate unnoticed, large enough to compress well."""
LEVEL = 4
"""gzip's: takes a third of the time of level 6, for texts 7 % larger."""
LONGEST_CHARACTERS = 8_000
ANSWER_CHARACTERS = 80
"""Shown of an answer in the table of all items."""
PER_UNIT: dict[str, tuple[str, Callable[[str], int]]] = {
    "acc_norm": ("character", len),
    "acc_bytes": ("byte", lambda choice: len(choice.encode("utf-8", "replace"))),
}
"""lm-eval's metrics that rank choices by log-likelihood per character or byte, and how many a choice has."""
BY_SUM = "acc"
"""Its metric that ranks them by their log-likelihood."""

Text = str | list[str | int]
Place = tuple[int, int]
"""An item: place of its task in `items_of`, place in the task."""
ByItem = dict[Place, list[Glance]]


@dataclass(slots=True)
class Texts:
    """What of the runs' texts a page carries."""

    missing: list[str]
    """By side: why its texts cannot be had; empty where they can."""
    glances: list[ByItem] = field(default_factory=list)
    """By side: every item's records, unread."""
    order: list[Place] = field(default_factory=list)
    """The items that are in, in the order of the chunks."""
    chunks: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Items a chunk."""
    answers: dict[tuple[int, str, int], list[str]] = field(default_factory=dict)
    """(task, rung, side) -> by item, what was read as its answer; its first characters."""
    files: dict[tuple[int, str, int], list[str]] = field(default_factory=dict)
    """(task, rung, side) -> records files, for what is not in the page."""


def compact(content: Any) -> str:
    """JSON without spaces."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def packed(text: str) -> str:
    """Text as gzip in base64: equal text gives equal characters, and none of them means anything in HTML."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), LEVEL, mtime=0)).decode()


def shortened(text: str) -> Text:
    """The text; of a long one its beginning, how many characters are left out, and its end."""
    left_out = len(text) - LONGEST_CHARACTERS
    if left_out <= 0:
        return text
    half = LONGEST_CHARACTERS // 2
    return [text[:half], left_out, text[-half:]]


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "extractor": reading.extractor, "status": str(reading.status), "score": reading.score,
        "answer": shortened(reading.answer), "rule": reading.rule,
    }  # fmt: skip


def _reply(record: ItemRecord) -> dict[str, Any]:
    """What one side said; what is empty is left out."""
    first, *others = record.readings
    found = _reading(first) | {
        "seed": record.seed,
        "text": shortened(record.text),
        "nats": record.choice_loglikelihoods_nats,
        "ranked": record.choices.index(first.answer) if first.answer in record.choices else -1,
        "finish_reason": record.finish_reason,
        "completion_tokens": record.completion_tokens,
        "fragile": record.fragile,
        "cut": record.truncated_prompt_tokens,
        "beyond": record.beyond_context_tokens,
        "never": record.never_right,
        "prefix": record.reply_prefix,
        "error": shortened(record.error),
        "others": [_reading(other) for other in others],
    }
    if first.metric in PER_UNIT and record.choices:
        found["unit"], units = PER_UNIT[first.metric]
        pairs = zip(record.choice_loglikelihoods_nats, record.choices, strict=False)
        found["per_unit"] = [nats / units(choice) if choice else None for nats, choice in pairs]
    found["unbarred"] = first.metric not in (BY_SUM, *PER_UNIT)
    return {key: value for key, value in found.items() if key in ("score", "seed", "ranked") or value}


def item_texts(records: Sequence[Sequence[ItemRecord]]) -> dict[str, Any]:
    """All that was said of an item, by rung; `records` by side. A prompt that all sides share is there once."""
    found: dict[str, Any] = {}
    for rung in RUNGS:
        by_side = [[record for record in side if record.rung == rung] for side in records]
        every = [record for side in by_side for record in side]
        if not every:
            continue
        first = every[0]
        found[rung] = {
            "prompt": shortened(first.prompt),
            "gold": shortened(first.gold),
            "choices": [shortened(choice) for choice in first.choices],
            "gold_index": first.gold_index,
            "sides": [[_reply(record) for record in side] for side in by_side],
        }
        others = [next((r.prompt for r in side if r.prompt != first.prompt), "") for side in by_side]
        if any(others):
            found[rung]["prompts"] = [shortened(other) for other in others]
    return found


def look(comparison: Comparison) -> Texts:
    """What can be had of the runs' texts: why not, where they stand, and all answers; no chunks yet."""
    texts = Texts([why_no_texts(side) for side in comparison.sides])
    tasks = {task.task: t for t, task in enumerate(comparison.items_of)}
    places = [{item: i for i, item in enumerate(task.items)} for task in comparison.items_of]
    for side, described in enumerate(comparison.sides):
        by_item: ByItem = {}
        texts.glances.append(by_item)
        for glance in () if texts.missing[side] else glances(open_run(described.run)):
            t = tasks[glance.task]
            i = places[t][glance.item]
            by_item.setdefault((t, i), []).append(glance)
            answers = texts.answers.setdefault((t, glance.rung, side), [""] * len(places[t]))
            answer = glance.answer[:ANSWER_CHARACTERS]
            answers[i] = answer if answers[i] in ("", answer) else f"{answers[i]} · {answer}"
            files = texts.files.setdefault((t, glance.rung, side), [])
            if glance.file.name not in files:
                files.append(glance.file.name)
    return texts


def _chunks(comparison: Comparison, found: Sequence[ByItem]) -> Iterator[tuple[str, list[Place]]]:
    """Compressed texts with the items in them, the most telling first."""
    lines: list[str] = []
    inside: list[Place] = []
    for t, i in telling_order(comparison):
        records = [[record_at(glance) for glance in side.get((t, i), ())] for side in found]
        lines.append(compact(item_texts(records)))
        inside.append((t, i))
        if sum(map(len, lines)) >= CHUNK_CHARACTERS:
            yield packed(f"[{','.join(lines)}]"), inside
            lines, inside = [], []
    if inside:
        yield packed(f"[{','.join(lines)}]"), inside


def fill(texts: Texts, comparison: Comparison, room_bytes: int) -> None:
    """Add the texts of the most telling items, as chunks of `room_bytes` in all at most."""
    if all(texts.missing):
        return
    for chunk, inside in _chunks(comparison, texts.glances):
        room_bytes -= len(chunk)
        if room_bytes < 0:
            break
        texts.chunks.append(chunk)
        texts.order += inside
        texts.sizes.append(len(inside))
