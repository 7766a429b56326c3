"""A comparison in a terminal: the headline, one table, what to know before believing it.

Where the table with a column for each number does not fit (it needs about 90 columns), every task is a short block of
lines. Knows nothing of how the numbers were made.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perplexity_lies.errors import printable
from perplexity_lies.read.comparison import Caution, Comparison, ProtocolRow, TaskRow, interval, signed
from perplexity_lies.read.stats.bootstrap import RULE_OF_THREE, Estimate

TASK_COLUMNS = 20
"""Longer names fold."""
ASCII = str.maketrans({"−": "-", "→": ">", "–": "-"})


def _name(row: TaskRow, comparison: Comparison) -> str:
    return "overall" if row is comparison.overall else printable(row.task)


def _n(row: TaskRow) -> str:
    counts = sorted({found.gap.n for found in (row.loglikelihood, row.generation) if found})
    return "–".join(map(str, counts))


def _bounds(found: Estimate) -> str:
    return interval(found) + ("*" if found.method == RULE_OF_THREE else "")


def _style(found: Estimate) -> str:
    """Red where the interval lies below zero, green where above, plain where it includes zero."""
    if found.high is not None and found.high < 0:
        return "red"
    return "green" if found.low is not None and found.low > 0 else ""


def _scores(found: ProtocolRow | None, between: str) -> str:
    return f"{found.teacher.score.value:.1f}{between}{found.student.score.value:.1f}" if found else "–"


def _gap(found: Estimate | None, *, inline: bool = False) -> Text:
    if found is None:
        return Text("–")
    text = Text(signed(found.value), style=f"bold {_style(found)}".strip())
    return text.append(" " if inline else "\n").append(_bounds(found), style="dim")


def _answered(found: ProtocolRow | None, between: str) -> str:
    if found is None:
        return "–"
    sides = (found.teacher, found.student)
    return between.join(f"{100 * side.coverage:.0f}, {100 * side.truncation:.0f}" for side in sides)


def _wide(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("task\nn", overflow="fold", max_width=TASK_COLUMNS)
    for header in (
        "log-lik %\nT, S",
        "gap, pp\n[95 %]",
        "gen. %\nT, S",
        "gap, pp\n[95 %]",
        "hidden gap\n[95 %]",
        "answered,\ncut %",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for row in comparison.rows:
        ranked, generated = row.loglikelihood, row.generation
        if row is comparison.overall:
            table.add_section()
        name = Text(_name(row, comparison), style="bold" if row is comparison.overall else "")
        table.add_row(
            name.append(f"\n{_n(row)}", style="not bold dim"),
            _scores(ranked, "\n"),
            _gap(ranked.gap if ranked else None),
            _scores(generated, "\n"),
            _gap(generated.gap if generated else None),
            _gap(row.hidden_gap),
            _answered(generated, "\n"),
        )
    return table


def _narrow(comparison: Comparison) -> Iterator[RenderableType]:
    for row in comparison.rows:
        generated = row.generation
        yield Text(f"\n{_name(row, comparison)}", style="bold").append(f"  n {_n(row)}", style="not bold dim")
        grid = Table.grid(padding=(0, 1))
        for _ in range(3):
            grid.add_column(overflow="fold")
        for spoken, found in (("log-lik", row.loglikelihood), ("generated", generated)):
            grid.add_row(f"  {spoken}", _scores(found, " → "), _gap(found.gap if found else None, inline=True))
        grid.add_row("  hidden", "", _gap(row.hidden_gap, inline=True))
        yield grid
        if generated:
            yield Text(f"  answered, cut {_answered(generated, ' → ')} %", style="dim")


def _notes(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text("T teacher, S student; answered: an answer was found; cut: the reply hit its budget", style="dim")
    found = [gap for row in comparison.rows for gap in _gaps(row)]
    if any(gap.method == RULE_OF_THREE for gap in found):
        yield Text("* no two items differ: the bound is what n items cannot exclude (rule of three)", style="dim")
    by_kind: dict[str, list[Caution]] = {}
    for caution in comparison.cautions:
        by_kind.setdefault(caution.kind, []).append(caution)
    for kind, same in by_kind.items():
        where = ", ".join(dict.fromkeys(caution.task for caution in same if caution.task))
        said = same[0].text if len(same) == 1 else f"{kind} ({len(same)} cautions, in the report)"
        yield Text("! ", style="yellow").append(
            printable(f"{where}: {said}" if where else said), style="not bold default"
        )


def _gaps(row: TaskRow) -> Iterator[Estimate]:
    for found in (row.loglikelihood, row.generation):
        if found:
            yield found.gap
    if row.hidden_gap:
        yield row.hidden_gap


class _Rendered:
    """Chooses the layout when the width is known."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        comparison = self.comparison
        names = f"{comparison.student_name} (S) against {comparison.teacher_name} (T), suite {comparison.suite_name}"
        headline = Text(printable(comparison.headline()), style="bold red" if comparison.guard_failures else "bold")
        parts: list[RenderableType] = [Text(printable(names), style="dim"), headline]
        if comparison.partial:
            parts.append(Text(f"PARTIAL: at most {comparison.limit} items per task were asked.", style="bold yellow"))
        table = _wide(comparison)
        if table.__rich_measure__(console, options.update(max_width=10_000)).maximum <= options.max_width:
            parts.append(table)
        else:
            parts += [*_narrow(comparison), Text("")]
        parts += _notes(comparison)
        whole = Padding(Group(*parts), (1, 0))
        if not options.ascii_only:
            yield whole
            return
        for segment in console.render(whole, options):
            yield segment._replace(text=segment.text.translate(ASCII))  # type: ignore[misc]


def render(comparison: Comparison) -> RenderableType:
    """The comparison as something rich can print, at any width."""
    return _Rendered(comparison)
