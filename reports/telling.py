"""Which items tell most of a comparison: the order in which their texts enter a page until its budget is spent.

`CLASSES` is the rule, first class first; within a class the tasks take turns, so that no task fills the page alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import ABSENT, STATUS_CODES, TaskItems
from perplexity_lies.record.records import Status
from perplexity_lies.rungs import CONTRASTS, RUNGS

RIGHT = 0.5
"""A score from here on counts as right."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Columns:
    """A task's items on one rung; every array has one place for each item."""

    paired: Flags
    right: Flags
    """[sides, n]"""
    odd: Flags
    """Whether a side gave no answer, or was cut."""
    fragile: Flags

    @property
    def lost(self) -> Flags:
        """The baseline right, a student wrong."""
        found: Flags = self.paired & self.right[0] & ~self.right[1:].all(axis=0)
        return found

    @property
    def gained(self) -> Flags:
        """The baseline wrong, a student right."""
        found: Flags = self.paired & ~self.right[0] & self.right[1:].any(axis=0)
        return found


def _columns(task: TaskItems) -> dict[str, Columns]:
    n = len(task.items)
    plain = [STATUS_CODES[Status.SCORED].encode(), ABSENT.encode()]
    found = {}
    for rung, items in task.rungs.items():
        scores = np.array([[-1.0 if score is None else score for score in side] for side in items.scores])
        letters = np.array([np.frombuffer(side.encode(), "S1") for side in items.statuses])
        fragile = np.zeros(n, dtype=bool)
        fragile[[place for side in items.fragile for place in side]] = True
        paired: Flags = np.array([mark == "1" for mark in items.paired])
        odd: Flags = ~np.logical_and.reduce(np.isin(letters, plain))
        found[rung] = Columns(paired, scores >= RIGHT, odd, fragile)
    return found


def _any(columns: dict[str, Columns], of: Callable[[Columns], Flags], replies: bool | None = None) -> Flags:
    """Items of which it holds on some rung; `replies`: on a rung with replies, or without."""
    found = [of(each) for rung, each in columns.items() if replies in (None, RUNGS[rung].replies)]
    none: Flags = np.zeros(len(next(iter(columns.values())).paired), dtype=bool)
    return np.logical_or.reduce([none, *found])


def _hidden(columns: dict[str, Columns]) -> Flags:
    """A student right on a contrast's subtracted rung and wrong on the other."""
    found = _any(columns, lambda each: np.zeros_like(each.paired))
    for contrast in CONTRASTS:
        if contrast.of in columns and contrast.minus in columns:
            of, minus = columns[contrast.of], columns[contrast.minus]
            found |= of.paired & minus.paired & (minus.right[1:] & ~of.right[1:]).any(axis=0)
    return found


def _hidden_words() -> str:
    pairs = [f"{RUNGS[contrast.minus].title} and wrong by {RUNGS[contrast.of].title}" for contrast in CONTRASTS]
    return f"items that a student has right by {', or by '.join(pairs)}"


CLASSES: tuple[tuple[str, Callable[[dict[str, Columns]], Flags]], ...] = (
    (
        f"{_hidden_words()} while its teacher is right",
        lambda found: _hidden(found) & _any(found, lambda r: r.lost, True),
    ),
    ("other losses where a reply is written", lambda found: _any(found, lambda each: each.lost, True)),
    ("losses where answers are ranked", lambda found: _any(found, lambda each: each.lost, False)),
    ("the first kind with the teacher wrong too", _hidden),
    ("gains", lambda found: _any(found, lambda each: each.gained)),
    ("replies without an answer, or cut", lambda found: _any(found, lambda each: each.odd)),
    ("fragile answers", lambda found: _any(found, lambda each: each.fragile)),
)
"""What an item of the class is, and which items are of it; an item is of the first that fits, or of the rest."""

RULE = f"{'; then '.join(name for name, _ in CLASSES)}; then the rest. Within each, the tasks take turns"


def telling_order(comparison: Comparison) -> list[tuple[int, int]]:
    """Every item as (place of its task in `items_of`, place in the task), the most telling first."""
    keys: list[tuple[int, int, int, int]] = []
    for t, task in enumerate(comparison.items_of):
        if not task.rungs:
            continue
        columns = _columns(task)
        classes = np.select([fits(columns) for _, fits in CLASSES], range(len(CLASSES)), default=len(CLASSES))
        turns: dict[int, int] = {}
        for i, kind in enumerate(classes.tolist()):
            turns[kind] = turns.get(kind, -1) + 1
            keys.append((kind, turns[kind], t, i))
    return [(t, i) for _, _, t, i in sorted(keys)]
