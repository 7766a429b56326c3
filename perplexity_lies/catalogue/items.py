"""`Item`: one question of a suite's own, as a JSONL file beside the suite holds it, one object a line.

    {"id": "a1", "question": "2 + 3 = ?", "choices": ["5", "6"], "gold": 0, "target": "5", "subject": "sums"}

`target` is the text that a reply is judged against; `subject` may be left out, and other keys are ignored.
Standard library only. Knows nothing of suites or protocols; both protocols read their items here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perplexity_lies.errors import UsageError

EXAMPLE = '{"id": "a1", "question": "...", "choices": ["...", "..."], "gold": 0, "target": "..."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is asked."""

    id: str
    question: str
    choices: tuple[str, ...]
    """What log-likelihood ranks; two or more."""
    gold: int
    """Index of the right choice."""
    target: str
    """What generation is judged against."""
    subject: str = ""
    """Cluster for the bootstrap."""


def _is_text(value: Any, *, empty: bool = True) -> bool:
    """A string that can be written as UTF-8 (JSON may hold half a surrogate pair)."""
    return isinstance(value, str) and (empty or bool(value)) and not any("\ud800" <= c <= "\udfff" for c in value)


def _fault(raw: Any) -> str:
    """What keeps `raw` from being an item; empty when nothing does."""
    if not isinstance(raw, dict):
        return f"a JSON {type(raw).__name__}, not an object"
    lacking = [key for key in ("id", "question", "choices", "gold", "target") if key not in raw]
    if lacking:
        return f"no {', '.join(map(repr, lacking))}; keys: {', '.join(raw)}"
    for key in ("question", "target", "subject"):
        if not _is_text(raw.get(key, "")):
            return f"{key!r} is not a text: {raw[key]!r}"
    if not raw["target"].strip():
        return "'target' is empty: any reply without an answer would be right"
    if not _is_text(raw["id"], empty=False) or raw["id"] != " ".join(raw["id"].split()):
        return f"'id' must be a text without spaces around it or in rows: {raw['id']!r}"
    choices, gold = raw["choices"], raw["gold"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(_is_text(c, empty=False) for c in choices):
        return f"'choices' must be two texts or more, none empty: {choices!r}"
    if type(gold) is not int or not 0 <= gold < len(choices):
        return f"'gold' must be an index into {len(choices)} choices: {gold!r}"
    return ""


def read_items(file: Path, where: str = "") -> list[Item]:
    """The items of a JSONL file, in file order.

    Raises UsageError, led by `where` and naming the line, for anything that is not an item, for a second item of one id,
    and for a file without items.
    """
    where = where or str(file)
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{where}: {file.name} is not UTF-8 text", found=str(error), mend="save it as UTF-8"
        ) from error
    if lines == [""]:
        raise UsageError(f"{where}: {file.name} holds no items", found="an empty file", mend=f"one a line: {EXAMPLE}")
    items: dict[str, Item] = {}
    for number, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
            fault = _fault(raw)
        except (ValueError, RecursionError) as error:
            fault = f"not JSON: {error}"
        if not fault and raw["id"] in items:
            fault = f"id {raw['id']!r} a second time"
        if fault:
            raise UsageError(f"{where}: {file.name}:{number} is not an item", found=fault[:300], mend=EXAMPLE)
        items[raw["id"]] = Item(
            id=raw["id"],
            question=raw["question"],
            choices=tuple(raw["choices"]),
            gold=raw["gold"],
            target=raw["target"],
            subject=raw.get("subject", ""),
        )
    return list(items.values())
