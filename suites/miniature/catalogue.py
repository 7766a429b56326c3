"""The five tasks of the miniature world: how many items each has, the pattern of an answer, the token budget of a reply.

`python -m suites.miniature` writes `tasks.json` and `items/*.jsonl` from this table, the same bytes each time. A run reads the
settings in `suites/miniature.yaml`; a test holds the two equal. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from suites.miniature.world import Item, make_items, make_world

HERE = Path(__file__).parent

WHOLE_REPLY = r"^\s*(.*?)\s*$"
TASKS: dict[str, dict[str, Any]] = {
    "facts": {"extract": WHOLE_REPLY, "max_new_tokens": 24, "items": 200},
    "choice": {"extract": r"\b([A-D])\s*$", "max_new_tokens": 24, "items": 160},
    "arith": {"extract": r"answer : (\d+)", "max_new_tokens": 56, "items": 200},
    "recall": {"extract": WHOLE_REPLY, "max_new_tokens": 32, "items": 200},
    "instruct": {"extract": WHOLE_REPLY, "max_new_tokens": 32, "items": 200},
}
"""Per task: regular expression whose group is the answer in a reply, token budget of a reply, number of items."""


def all_items() -> dict[str, list[Item]]:
    """The evaluation items of every task."""
    return make_items(make_world(), {task: settings["items"] for task, settings in TASKS.items()})


def task_items(task: str, count: int | None = None) -> list[Item]:
    """The generator `miniature`: the items of one task, or `count` items made anew. Raises ValueError for another task."""
    if task not in TASKS:
        raise ValueError(f"the miniature world has no task {task!r}: {', '.join(TASKS)}")
    return make_items(make_world(), {task: count or TASKS[task]["items"]})[task]


def write_files(directory: Path = HERE) -> list[Path]:
    """Write `tasks.json` and `items/<task>.jsonl` under `directory`; returns the paths."""
    (directory / "items").mkdir(parents=True, exist_ok=True)
    paths = [directory / "tasks.json"]
    paths[0].write_text(json.dumps(TASKS, indent=2) + "\n", encoding="utf-8")
    for task, items in all_items().items():
        path = directory / "items" / f"{task}.jsonl"
        lines = [json.dumps(dataclasses.asdict(item)) + "\n" for item in items]
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths
