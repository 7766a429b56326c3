"""`Item`: one question that does not belong to an evaluation library. A JSONL file holds one a line.

    {"id": "a1", "question": "2 + 3 = ?", "choices": ["5", "6"], "gold": 0, "target": "5", "subject": "sums"}

`choices` and `gold` may be left out where a task is only asked for replies; `subject` may always be left out. A line may
hold other keys, which are ignored.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from perplexity_lies.checked import Checked, checked
from perplexity_lies.errors import UsageError

ITEM_EXAMPLE = '{"id": "a1", "question": "...", "choices": ["...", "..."], "gold": 0, "target": "..."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Checked):
    """What is asked. Raises ValueError for values that do not fit each other."""

    id: Annotated[str, MinLen(1)]
    question: str
    choices: tuple[Annotated[str, MinLen(1)], ...] = ()
    """What log-likelihood ranks: two or more, or none."""
    gold: int = -1
    """Index of the right choice; -1 where there are no choices."""
    target: str
    """What a reply is judged against."""
    subject: str = ""
    """Its cluster, for the intervals."""

    def __post_init__(self) -> None:
        if self.id != " ".join(self.id.split()):
            raise ValueError("`id` must have no spaces at its ends and no two in a row")
        if not self.target.strip():
            raise ValueError("`target` is empty, so a reply without an answer would be right")
        if len(self.choices) == 1:
            raise ValueError("`choices` must be two texts or more, or left out")
        if not (0 <= self.gold < len(self.choices) or (self.gold == -1 and not self.choices)):
            raise ValueError(f"`gold` must be an index into {len(self.choices)} choices, and is {self.gold}")


FIELDS = tuple(field.name for field in dataclasses.fields(Item))


def item_of(raw: Any, where: str) -> Item:
    """Plain values, such as a line of a JSONL file holds, as an item. Raises UsageError led by `where`."""
    known = {key: raw[key] for key in FIELDS if key in raw} if isinstance(raw, dict) else raw
    return checked(Item, known, where, ITEM_EXAMPLE)


def refuse_same_id(items: Iterable[Item], where: str) -> None:
    """Raises UsageError where two items have one id."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(f"{where}: two items have one id", found=repr(item.id), mend="give each item its own id")
        seen.add(item.id)


def by_occurrence(
    named: Sequence[tuple[str, str]], where: str, mend: str, twins: str = "two items are named"
) -> list[str]:
    """The names of items given as (name, content), in order: what stands again is `name #2`, `name #3`.

    Rows stand twice in real data sets. Raises UsageError where one name belongs to two contents.
    """
    contents: dict[str, str] = {}
    taken, seen = {name for name, _ in named}, Counter[str]()
    found = []
    for name, content in named:
        if contents.setdefault(name, content) != content:
            raise UsageError(f"{where}: {twins} {name!r}", found="they are not the same", mend=mend)
        seen[name] += 1
        number = seen[name]
        while number > 1 and (again := f"{name} #{number}") in taken:
            number += 1
        found.append(again if number > 1 else name)
        taken.add(found[-1])
    return found


def refuse_unanswerable(items: Iterable[Item], where: str, *, replied: bool, ranked: bool) -> None:
    """Raises UsageError for items of which the files alone tell that no answer to them can count as right."""
    for item in items:
        if replied and item.target != item.target.strip():
            raise UsageError(
                f"{where}: item {item.id!r} can never be right: answers are read without spaces around them",
                found=f"target: {item.target!r}",
                mend=f"target: {item.target.strip()!r}",
            )
        twice = [choice for choice, count in Counter(item.choices).items() if count > 1]
        if ranked and twice:
            raise UsageError(
                f"{where}: item {item.id!r} has two equal choices, which no ranking can tell apart",
                found=f"choices: {twice[0]!r} twice",
                mend="choices that differ",
            )


def read_items(file: Path, where: str = "") -> list[Item]:
    """The items of a JSONL file, in file order.

    Raises UsageError, led by `where` and naming the line, for a line that is not an item, for an id that stands twice, and
    for a file without items.
    """
    where = f"{where}: {file.name}" if where else str(file)
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not UTF-8 text", found=str(error), mend="save it as UTF-8") from error
    if lines == [""]:
        raise UsageError(f"{where} holds no items", found="an empty file", mend=f"one a line: {ITEM_EXAMPLE}")
    items = [item_of(_json(line, f"{where}:{number}"), f"{where}:{number}") for number, line in enumerate(lines, 1)]
    refuse_same_id(items, where)
    return items


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON", found=str(error)[:200], mend=ITEM_EXAMPLE) from error


def dump_items(items: Iterable[Item]) -> str:
    """JSONL text of items: the inverse of `read_items`."""
    return "".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in items)
