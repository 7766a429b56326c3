"""The waterfall, the causes and the item matrix, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from perplexity_lies.errors import printable
from perplexity_lies.read.causes import Causes
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import OVERALL
from perplexity_lies.read.waterfall import Waterfall
from perplexity_lies.read.wording import interval, signed
from perplexity_lies.rungs import RUNGS


@dataclass(frozen=True, slots=True)
class Told:
    """One student on one task."""

    task: str
    student: str
    fall: Waterfall | None
    causes: Causes | None


def told(comparison: Comparison) -> list[Told]:
    """What there is to tell by task and student, the overall rows first."""
    falls = {(fall.task, fall.side): fall for fall in comparison.waterfalls}
    causes = {(found.task, found.side): found for found in comparison.causes}
    keys = sorted({*falls, *causes}, key=lambda key: key[0] != OVERALL)
    return [
        Told(task, comparison.sides[side].label, falls.get((task, side)), causes.get((task, side)))
        for task, side in keys
    ]


def parts(comparison: Comparison) -> Iterator[RenderableType]:
    """For the terminal: steps and causes of the overall row, else of every task. Without a ladder, nothing."""
    if not comparison.waterfalls:
        return
    every = [each for each in told(comparison) if each.fall is not None]
    shown = [each for each in every if each.task == OVERALL] or every
    for each in shown:
        if each.fall is not None:
            yield Text(printable(f"\n{each.task}, {each.student}: where the hidden gap enters, pp"), style="bold")
            yield _steps(each.fall)
        if each.causes is not None and each.causes.causes:
            title = f"{each.task}, {each.student}: causes of the {RUNGS[each.causes.rung].title} gap, pp"
            yield Text(printable(title), style="bold")
            yield _cause_table(each.causes)


def _steps(fall: Waterfall) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("rung", "teacher", "student", "gap", "T alone, S alone"):
        table.add_column(name, justify="left" if name == "rung" else "right")
    flips = [f"{cells.lost}, {cells.gained}" for cells in fall.matrix]
    first = RUNGS[fall.matrix[0].rung]
    table.add_row(first.title, "", "", f"{signed(fall.first.value)} {interval(fall.first)}", flips[0])
    for step, flip in zip(fall.steps, flips[1:], strict=True):
        table.add_row(
            f"+ {RUNGS[step.upper].title}",
            signed(step.teacher.value),
            signed(step.student.value),
            f"{signed(step.gap.value)} {interval(step.gap)}",
            flip,
        )
    table.add_row("= hidden gap", "", "", f"{signed(fall.hidden.value)} {interval(fall.hidden)}", "")
    return table


def _cause_table(causes: Causes) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("cause", "lost", "gained", "part of the gap"):
        table.add_column(name, justify="left" if name == "cause" else "right")
    for each in causes.causes:
        share = f"{signed(each.share.value)} {interval(each.share)}"
        table.add_row(each.cause, str(each.lost), str(each.gained), share)
    table.add_row("= gap", "", "", f"{signed(causes.gap.value)} {interval(causes.gap)}")
    return table
