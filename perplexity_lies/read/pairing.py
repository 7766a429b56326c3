"""Records of a teacher and of its student, paired by item.

Records pair when task, item, protocol, metric and prompt hash agree on both sides and both checkpoints could be asked.
`errored` and `refused` records are no measurement and never pair; `unparsed`, `truncated` and `degenerate` ones are
replies, and count with the score that the library gave them. What does not pair is listed with its reason.

Knows nothing of statistics or of how the items are shown.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from perplexity_lies.errors import UsageError
from perplexity_lies.read.comparison import SIDES, Unpaired
from perplexity_lies.read.stats.bootstrap import Floats
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD, PROTOCOLS, UNMEASURED, ItemRecord
from perplexity_lies.record.store import Run

HIDDEN = "hidden gap"

Records = dict[tuple[str, str], dict[str, list[ItemRecord]]]
"""(task, protocol) -> item -> records by seed."""
Sides = dict[str, Records]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One task under one protocol: the items that pair, in sorted order."""

    items: tuple[str, ...]
    subjects: tuple[str, ...]
    scores: Floats
    """[n, 2]: teacher, student; in [0, 1], mean over seeds."""


def group(run: Run) -> Records:
    grouped: defaultdict[tuple[str, str], defaultdict[str, list[ItemRecord]]]
    grouped = defaultdict(lambda: defaultdict(list))
    for record in run.records():
        grouped[record.task, record.protocol][record.item].append(record)
    for (task, protocol), items in grouped.items():
        for item, records in items.items():
            records.sort(key=lambda record: record.seed)
            if len({record.seed for record in records}) < len(records):
                raise UsageError(
                    f"the run {str(run.path)!r} cannot be read",
                    found=f"two records for task {task!r}, item {item!r}, {protocol}, same seed",
                    mend="delete the run directory and evaluate again",
                )
    return {key: dict(items) for key, items in grouped.items()}


def _why_unpaired(teacher: list[ItemRecord], student: list[ItemRecord]) -> str:
    """Empty where the two sides pair."""
    if not teacher or not student:
        return f"only in the {'teacher' if teacher else 'student'}'s run"
    both = teacher + student
    if len({record.prompt_sha256 for record in both}) > 1:
        return "prompt differs"
    if len({record.metric for record in both}) > 1:
        return "metric differs"
    if len({(record.gold, record.gold_index) for record in both}) > 1:
        return "reference answer differs"
    for side, records in zip(SIDES, (teacher, student), strict=True):
        for record in records:
            if record.status in UNMEASURED:
                return f"{side}'s record is {record.status}"
    return ""


def pair(task: str, protocol: str, sides: Sides) -> tuple[Paired, list[Unpaired]]:
    teacher, student = (sides[side].get((task, protocol), {}) for side in SIDES)
    left: defaultdict[str, list[str]] = defaultdict(list)
    items: list[str] = []
    for item in sorted(teacher.keys() | student.keys()):
        why = _why_unpaired(teacher.get(item, []), student.get(item, []))
        (left[why] if why else items).append(item)
    scores = [[fmean(record.score for record in side[item]) for side in (teacher, student)] for item in items]
    paired = Paired(
        items=tuple(items),
        subjects=tuple(teacher[item][0].subject for item in items),
        scores=np.array(scores, dtype=np.float64).reshape(-1, 2),
    )
    return paired, [Unpaired(task=task, what=protocol, reason=why, items=tuple(left[why])) for why in sorted(left)]


def left_of_hidden(task: str, pairs: dict[str, Paired]) -> list[Unpaired]:
    by_loglikelihood, generated = (set(pairs[protocol].items) for protocol in PROTOCOLS)
    reasons = {
        "paired by log-likelihood only": by_loglikelihood - generated,
        "paired by generation only": generated - by_loglikelihood,
    }
    return [
        Unpaired(task=task, what=HIDDEN, reason=reason, items=tuple(sorted(items)))
        for reason, items in reasons.items()
        if items
    ]


def four_cells(pairs: dict[str, Paired]) -> Paired:
    """Items with all four scores: columns (LL teacher, LL student, generation teacher, generation student)."""
    first, second = pairs[LOGLIKELIHOOD], pairs[GENERATION]
    common = set(first.items) & set(second.items)
    rows = [[i for i, item in enumerate(paired.items) if item in common] for paired in (first, second)]
    return Paired(
        items=tuple(first.items[i] for i in rows[0]),
        subjects=tuple(first.subjects[i] for i in rows[0]),
        scores=np.hstack([first.scores[rows[0]], second.scores[rows[1]]]),
    )
