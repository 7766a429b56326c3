"""The generator `ruler`: items of RULER's thirteen tasks (Hsieh et al. 2024, arXiv:2404.06654), the same for every checkpoint.

    items: {generator: ruler, task: niah_single_1, length: 4096, edition: 1}

An item depends on its task, length and number alone: each has a seed of its own, so neither other items, nor `--limit`, nor
what else has drawn random numbers changes it. A test holds the digests of edition 1.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from suites.long.documents import SETS, essay_sentences, qa_item
from suites.long.lists import cwe_item, fwe_item, vt_item
from suites.long.needles import HUNTS, hunt_item

EDITION = 1
LISTS: dict[str, Callable[[int, int, random.Random], dict[str, object]]] = {
    "vt": vt_item, "cwe": cwe_item, "fwe": fwe_item,
}  # fmt: skip
REPLY_TOKENS = {**dict.fromkeys(HUNTS, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
"""Task -> the token budget of a reply, as RULER has it."""
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
COUNT = 500
"""Items of a task at a length, as RULER has it."""
ESSAYS, SQUAD_ID, HOTPOT_ID = "baber/paul_graham_essays", "rajpurkar/squad_v2", "ruler/inputs"
DATASETS = {
    **{task: ESSAYS for task, hunt in HUNTS.items() if hunt.haystack == "essays"},
    "qa_1": SQUAD_ID,
    "qa_2": HOTPOT_ID,
}
"""Task -> the dataset that it reads; the others read none."""
CHANCE = 0.25
"""One choice of four is right."""


def ruler_items(
    task: str, length: int, count: int = COUNT, edition: int = EDITION, folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Items one after another, made as they are taken. `folder` is the task's dataset.

    Raises ValueError for a task or a length that there is not, and (when the first item is taken) for data that cannot
    be read.
    """
    if task not in REPLY_TOKENS:
        raise ValueError(f"RULER has no task {task!r}: {', '.join(REPLY_TOKENS)}")
    if edition != EDITION:
        raise ValueError(f"there is no edition {edition} of these items: {EDITION}")
    if not (isinstance(length, int) and isinstance(count, int)) or not 2048 <= length <= 1 << 20 or count < 1:
        raise ValueError(
            f"length {length!r}, count {count!r}: a length is 2,048 to 1,048,576 tokens, a count 1 or more"
        )
    if task in DATASETS and folder is None:
        raise ValueError(f"{task} reads a dataset: add `dataset: {DATASETS[task]}`")
    return _items(task, length, count, folder)


def _items(task: str, length: int, count: int, folder: Path | None) -> Iterator[dict[str, Any]]:
    room, made, number = length - REPLY_TOKENS[task], 0, 0
    while made < count:
        rng = random.Random(f"ruler {EDITION} {task} {length} {number}")
        if task in SETS:
            assert folder is not None
            documents, asked = SETS[task](folder)
            if number == len(asked):
                return
            found = qa_item(room, number, rng, documents, asked)
        elif task in LISTS:
            found = LISTS[task](room, number, rng)
        else:
            found = hunt_item(task, room, number, rng, essay_sentences(folder) if folder is not None else ())
        if found is not None:
            yield as_item(found, number, rng)
            made += 1
        number += 1


def as_item(found: dict[str, Any], number: int, rng: random.Random) -> dict[str, Any]:
    """A line of a JSONL file: `right` is what a reply must hold, `reply` the right choice, `misses` the wrong ones.

    The id of an item that lies at a place ends in its depth in percent: `0012@37`. Several references are one target in
    JSON: `["4821907", "1935582"]`.
    """
    choices = list(found["misses"])
    gold = rng.randrange(len(choices) + 1)
    choices.insert(gold, found["reply"])
    place = "" if found["place"] is None else f"@{found['place']}"
    return {
        "id": f"{number:04d}{place}",
        "question": found["question"],
        "choices": choices,
        "gold": gold,
        "target": target_of(found["right"]),
    }


def target_of(references: list[str]) -> str:
    """References as one text: the only one as it is, several as a JSON array."""
    one = len(references) == 1 and not references[0].startswith("[")
    return references[0] if one else json.dumps(references, ensure_ascii=False)
