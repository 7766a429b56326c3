"""Running `plies` in a process of its own, and suites for it to ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ITEMS = [
    {"id": f"i{i}", "question": f"{i} + 1 = ?", "choices": [str(i + 1), str(i + 2)], "gold": 0, "target": str(i + 1)}
    for i in range(4)
]


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


Plies = Callable[..., Said]


def process(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perplexity_lies.cli", *map(str, args)]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)


def write_suite(folder: Path, name: str = "own", **task: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    settings = {
        "name": "sums",
        "items": "items.jsonl",
        "extract": r"(\d+)",
        "max_new_tokens": 4,
        "chat_template": False,
    }
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": name, "tasks": [{**settings, **task}]}))
    return folder / "own.yaml"


def write_stock(folder: Path, lm_eval: str = "arc/arc_easy.yaml", **generation: Any) -> Path:
    """A stock task over a mirror with four rows, `folder/hub`."""
    data = folder / "hub" / "o" / "d"
    (data / "ARC-Easy").mkdir(parents=True)
    import datasets

    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": f"q{i}", "question": f"which {i}?", "choices": choices, "answerKey": "B"} for i in range(4)]
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(rows).to_parquet(data / "ARC-Easy" / f"{split}.parquet")
    files = [{"split": split, "path": f"ARC-Easy/{split}.parquet"} for split in ("train", "validation", "test")]
    configs = [{"config_name": name, "data_files": files} for name in ("ARC-Easy", "ARC-Challenge")]
    card = yaml.safe_dump({"configs": configs})
    (data / "README.md").write_text(f"---\n{card}---\n")
    asked = {
        "evalscope": "arc", "dataset": "o/d", "subset": "ARC-Easy", "max_new_tokens": 4, "metric": "accuracy",
        "item": "{{ metadata.id }}", **generation,
    }  # fmt: skip
    ranked = {"lm_eval": lm_eval, "dataset": "o/d", "metric": "acc", "item": "{{ id }}"}
    tasks = [{"name": "own", "loglikelihood": ranked, "generation": asked}]
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": tasks}))
    return folder / "own.yaml"
