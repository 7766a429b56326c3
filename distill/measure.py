"""What a checkpoint scored under both protocols, as the harness hands it in: plain values, read and averaged here.

Nothing here asks a checkpoint anything; whoever calls the pipeline brings the function that does
(`perplexity_lies.in_the_loop.measurer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOGLIKELIHOOD, GENERATION = "loglikelihood", "generation"
PROTOCOLS = (LOGLIKELIHOOD, GENERATION)

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Task -> protocol -> {"items": {item: score in [0, 1]}, "statuses": {status: records}}."""
Measure = Callable[[Path], Scores]
"""A checkpoint directory -> its scores."""


BETTER = {"generation": max, "loglikelihood": max, "kl": min}
"""Which way is up for each criterion that a checkpoint is selected by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """Percent of a task's items."""

    items: int
    loglikelihood: float
    generation: float
    unparsed: float
    """Replies that ended by themselves and held no answer."""
    truncated: float
    """Replies cut by their token budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The student at one moment of a stage."""

    stage: str
    step: int
    tokens: int
    """Tokens that stages 3 have seen up to here."""
    kl: float
    """Mean KL(teacher || student) on the pipeline's `held_batches`, nats per token."""
    scores: dict[str, float]
    """Protocol -> percent of items; empty when nothing measures."""
    checkpoint: str
    """Directory of the exported weights when they were kept, or empty."""


def by_item(scores: Scores, protocol: str) -> dict[str, float]:
    """Score of every item, `task/item` -> [0, 1], under one protocol."""
    return {
        f"{task}/{item}": score
        for task, protocols in scores.items()
        if protocol in protocols
        for item, score in protocols[protocol]["items"].items()
    }


def percent(scores: Scores, protocol: str) -> float:
    """Mean over items, in percent. Raises ValueError when nothing was asked under this protocol."""
    values = by_item(scores, protocol).values()
    if not values:
        raise ValueError(f"nothing was asked under {protocol}")
    return 100 * sum(values) / len(values)


def task_scores(scores: Scores) -> dict[str, TaskScores]:
    """One line for each task that was asked under both protocols."""
    table = {}
    for task, asked in scores.items():
        if all(protocol in asked for protocol in PROTOCOLS):
            statuses, items = asked[GENERATION]["statuses"], len(asked[GENERATION]["items"])
            replies = sum(statuses.values())
            table[task] = TaskScores(
                items=items,
                loglikelihood=percent({task: asked}, LOGLIKELIHOOD),
                generation=percent({task: asked}, GENERATION),
                unparsed=100 * statuses.get("unparsed", 0) / replies,
                truncated=100 * statuses.get("truncated", 0) / replies,
            )
    return table


def best_point(points: Sequence[Point], criterion: str) -> Point:
    """The point that is best by `criterion`; the later one of equals. Raises ValueError when none was measured by it."""
    latest_first = list(reversed(points))
    return BETTER[criterion](latest_first, key=lambda point: point.kl if criterion == "kl" else point.scores[criterion])
