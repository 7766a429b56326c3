"""The page's section of items: a table of all items as numbers, and the texts of as many as fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.frames import STATUS_NAMES
from perplexity_lies.read.numbers import SHORT, RungItems
from perplexity_lies.rungs import CONTRASTS
from reports.naming import letters, rungs_of
from reports.telling import RIGHT, RULE
from reports.texts import LONGEST_CHARACTERS, Texts, compact, fill, look, packed


def _columns(items: RungItems, texts: Texts, t: int, rung: str) -> dict[str, Any]:
    """One rung's columns of a task."""
    sides = range(len(items.scores))
    return {
        "paired": items.paired,
        "scores": items.scores,
        "statuses": items.statuses,
        "fragile": items.fragile,
        "answers": [texts.answers.get((t, rung, side), []) for side in sides],
        "files": [texts.files.get((t, rung, side), []) for side in sides],
    }


def _table(comparison: Comparison, texts: Texts, runs: list[str]) -> dict[str, Any]:
    """What the page's scripts know of all items."""
    sides = zip(letters(comparison), comparison.sides, texts.missing, runs, strict=True)
    return {
        "right": RIGHT,
        "statuses": STATUS_NAMES | {SHORT: "cut"},
        "sides": [
            {"letter": letter, "label": side.label, "missing": why, "run": run} for letter, side, why, run in sides
        ],
        "rungs": [
            {"name": rung.name, "title": rung.title, "short": rung.short, "replies": rung.replies}
            for rung in rungs_of(comparison)
        ],
        "contrasts": [{"name": contrast.name, "of": contrast.of, "minus": contrast.minus} for contrast in CONTRASTS],
        "tasks": [
            {
                "task": task.task,
                "items": task.items,
                "subjects": task.subjects,
                "rungs": {rung: _columns(items, texts, t, rung) for rung, items in task.rungs.items()},
            }
            for t, task in enumerate(comparison.items_of)
        ],
    }


def context(comparison: Comparison, folder: Path | None, room_bytes: int) -> dict[str, Any]:
    """What the section's template is filled with; table and texts take `room_bytes` at most, the table first.

    `folder` is where the page will lie: run directories are named relative to it.
    """
    runs = [os.path.relpath(side.run, folder) if folder else Path(side.run).name for side in comparison.sides]
    texts = look(comparison)
    table = packed(compact(_table(comparison, texts, runs)))
    fill(texts, comparison, room_bytes - len(table))
    return {
        "table": table,
        "places": packed(compact({"order": texts.order, "sizes": texts.sizes})),
        "chunks": texts.chunks,
        "total": sum(len(task.items) for task in comparison.items_of),
        "inside": len(texts.order),
        "missing": [(side, why) for side, why in zip(comparison.sides, texts.missing, strict=True) if why],
        "runs": runs,
        "rule": RULE,
        "longest": LONGEST_CHARACTERS,
    }
