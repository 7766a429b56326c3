"""The tasks of the suite `long` as a table, and the file `suites/long.yaml` written from it.

`python -m suites.long` writes the file, the same bytes each time; a test holds the two equal. A run reads the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suites.long.ruler import CHANCE, DATASETS, EDITION, LENGTHS, REPLY_TOKENS

FILE = Path(__file__).parent.parent / "long.yaml"
HEAD = """\
# Long context: RULER's thirteen tasks at 4K to 128K tokens. Written by `python -m suites.long`; change that, not this.
# The items are the same for every checkpoint (docs/long.md says how a prompt's length is counted). A prompt ends in RULER's
# answer prefix. Generation is RULER's: its budget and its metric. The log-likelihood form is ours, not RULER's: the right
# answer ranked against three wrong ones of the same kind, after the same prompt, without a chat template.
name: long
title: Long context (RULER)
tasks:
"""


def ruler_tasks() -> Iterator[dict[str, Any]]:
    """Every task of RULER at every length, the lengths of one task together."""
    for task, budget in REPLY_TOKENS.items():
        judge = "string_match_part" if task in ("qa_1", "qa_2") else "string_match_all"
        for length in LENGTHS:
            items = {"generator": "ruler", "task": task, "length": length, "edition": EDITION}
            if task in DATASETS:
                items["dataset"] = DATASETS[task]
            yield {
                "name": f"{task}_{length}",
                "title": f"RULER {task}, {length // 1024}K",
                "series": task,
                "length_tokens": length,
                "items": items,
                "loglikelihood": {"chat_template": False, "chance": CHANCE},
                "generation": {"judge": judge, "metric": judge, "max_new_tokens": budget},
            }


def _flow(value: Any) -> str:
    """A value in YAML's flow style, which JSON nearly is."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    plain = isinstance(value, str) and value.replace("_", "").replace("/", "").replace("-", "").isalnum()
    return value if plain and not value[0].isdigit() else json.dumps(value, ensure_ascii=False)


def text() -> str:
    """The suite file."""
    blocks = []
    for task in ruler_tasks():
        first, *rest = [f"{key}: {_flow(value)}" for key, value in task.items()]
        blocks.append("".join([f"  - {first}\n", *(f"    {line}\n" for line in rest)]))
    return HEAD + "\n".join(blocks)
