"""What one run scored: every item's score by task and rung, as one value that can be averaged, compared and written.

    scores = scores_of(open_run("runs/..."))
    scores.percent("generation")                    ->  70.8, percent over all items
    item_table([scores, other], "generation")       ->  (items that both have, scores [runs, items])

An item that could not be measured (errored, refused) has no score and counts among the statuses alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from perplexity_lies.checked import Checked
from perplexity_lies.record.records import ItemRecord, Status
from perplexity_lies.record.store import Run
from perplexity_lies.rungs import RUNGS


@dataclass(frozen=True, slots=True, kw_only=True)
class RungScores(Checked):
    """One task on one rung."""

    items: dict[str, Annotated[float, Ge(0), Le(1)]] = field(default_factory=dict)
    """Item -> score, the mean over its seeds."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Status -> records."""

    @property
    def percent(self) -> float:
        """Mean score over the items, in percent. Raises ValueError when there are none."""
        if not self.items:
            raise ValueError("no item was measured")
        return 100 * fmean(self.items.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLine:
    """One task as a table shows it."""

    task: str
    items: int
    """Items that were measured, on the rung that has most."""
    percent: dict[str, float]
    """Rung -> percent of its items; rungs on which nothing was measured are left out."""
    unparsed: float | None
    """Percent of the replies that ended by themselves and held no answer; None where no rung has replies."""
    truncated: float | None
    """Percent of the replies that their token budget cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(Checked):
    """One run, or one checkpoint."""

    tasks: dict[str, dict[str, RungScores]]
    """Task -> rung -> scores."""

    @property
    def rungs(self) -> tuple[str, ...]:
        """Rungs on which a task has scores, in the order of `RUNGS`."""
        return tuple(rung for rung in RUNGS if any(rung in by_rung for by_rung in self.tasks.values()))

    def items(self, rung: str) -> dict[str, float]:
        """Score of every item on a rung, `task/item` -> [0, 1]."""
        return {
            f"{task}/{item}": score
            for task, by_rung in self.tasks.items()
            if rung in by_rung
            for item, score in by_rung[rung].items.items()
        }

    def percent(self, rung: str) -> float:
        """Mean over all items on a rung, in percent. Raises ValueError when no item was measured on it."""
        values = self.items(rung).values()
        if not values:
            raise ValueError(f"no item was measured on rung {rung}")
        return 100 * fmean(values)

    def lines(self) -> list[TaskLine]:
        """A line for each task."""
        return [_line(task, by_rung) for task, by_rung in self.tasks.items()]


def _line(task: str, by_rung: Mapping[str, RungScores]) -> TaskLine:
    statuses: Counter[str] = Counter()
    for rung, found in by_rung.items():
        if rung in RUNGS and RUNGS[rung].replies:
            statuses.update(found.statuses)
    replies = statuses.total()
    return TaskLine(
        task=task,
        items=max((len(found.items) for found in by_rung.values()), default=0),
        percent={rung: by_rung[rung].percent for rung in RUNGS if rung in by_rung and by_rung[rung].items},
        unparsed=100 * statuses[Status.UNPARSED] / replies if replies else None,
        truncated=100 * statuses[Status.TRUNCATED] / replies if replies else None,
    )


def scores_of(run: Run) -> Scores:
    """The scores of a run directory's records."""
    grouped: dict[str, dict[str, list[ItemRecord]]] = {}
    for record in run.records():
        grouped.setdefault(record.task, {}).setdefault(record.rung, []).append(record)
    return Scores(
        tasks={
            task: {rung: _rung_scores(records) for rung, records in by_rung.items()}
            for task, by_rung in grouped.items()
        }
    )


def _rung_scores(records: Sequence[ItemRecord]) -> RungScores:
    by_item: dict[str, list[float]] = {}
    for record in records:
        if record.measured:
            by_item.setdefault(record.item, []).append(record.score)
    return RungScores(
        items={item: fmean(of_seeds) for item, of_seeds in by_item.items()},
        statuses=dict(Counter(str(record.status) for record in records)),
    )


def item_table(runs: Sequence[Scores], rung: str) -> tuple[list[str], NDArray[np.float64]]:
    """Items on a rung and their scores [runs, items]; items that one of the runs lacks are left out."""
    answers = [run.items(rung) for run in runs]
    items = sorted(set.intersection(*(set(answer) for answer in answers)))
    return items, np.array([[answer[item] for item in items] for answer in answers])
