"""Short names of sides, and words for a number that is not there. Terminal, page and figures share them."""

from __future__ import annotations

from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import TaskRow
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.rungs import RUNGS, Rung

MOST_NAMED = 6
"""Tasks listed beside a method."""


def letters(comparison: Comparison) -> list[str]:
    """One a side, baseline first: `T, S`, or `T, S1, S2` where there are several students."""
    several = len(comparison.students) > 1
    return ["T", *(f"S{i}" if several else "S" for i, _ in enumerate(comparison.students, 1))]


def contest(comparison: Comparison) -> str:
    """`b (S) against a (T), suite miniature`."""
    baseline, *students = [
        f"{side.name} ({letter})" for side, letter in zip(comparison.sides, letters(comparison), strict=True)
    ]
    return f"{', '.join(students)} against {baseline}, suite {comparison.suite_name}"


def rungs_of(comparison: Comparison) -> list[Rung]:
    """The rungs on which a task was asked, in the order of the table."""
    there = {rung for row in comparison.rows for rung in _asked(comparison, row)}
    return [rung for rung in RUNGS.values() if rung.name in there]


def estimates(row: TaskRow) -> list[Estimate]:
    """The gaps and contrasts of a row, of all students."""
    gaps = [side.gap for found in row.rungs.values() for side in found.sides]
    return [found for found in (*gaps, *(each for sides in row.contrasts.values() for each in sides)) if found]


def methods_said(comparison: Comparison) -> str:
    """Which interval stands where: `gap: Tango score (arith, recall), ...; hidden gap: t (arith), ...`."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for row in comparison.rows:
        gaps = [side.gap for found in row.rungs.values() for side in found.sides]
        for kind, found in (("gap", gaps), *row.contrasts.items()):
            for one in found:
                if one:
                    named = f"none, {one.why}" if one.why else one.method
                    kinds.setdefault(kind, {}).setdefault(named, []).append(row.task)
    said = []
    for kind, methods in kinds.items():
        listed = [f"{method} ({_some(list(dict.fromkeys(tasks)))})" for method, tasks in methods.items()]
        said.append(f"{kind}: {', '.join(listed)}")
    return "; ".join(said)


def _some(tasks: list[str]) -> str:
    return (
        ", ".join(tasks)
        if len(tasks) <= MOST_NAMED
        else f"{', '.join(tasks[:MOST_NAMED])} and {len(tasks) - MOST_NAMED} more"
    )


def _asked(comparison: Comparison, row: TaskRow) -> set[str]:
    """Rungs of which there are records, paired or not."""
    return {rung for task in comparison.items_of if task.task == row.task for rung in task.rungs} | set(row.rungs)


def absent(comparison: Comparison, row: TaskRow, rung: str) -> str:
    """Why a row has no numbers on a rung: `not asked`, or `no pairs`."""
    return "no pairs" if rung in _asked(comparison, row) else "not asked"


def one_sided(comparison: Comparison, row: TaskRow, *, short: bool = False) -> str:
    """`asked by generation only`; empty where the row has numbers on every rung of the comparison, or on none."""
    if not row.rungs or len(row.rungs) == len(rungs_of(comparison)):
        return ""
    verb = "asked" if _asked(comparison, row) == set(row.rungs) else "paired"
    names = " and ".join(RUNGS[rung].short if short else RUNGS[rung].title for rung in row.rungs)
    return f"{verb} by {names} only"
