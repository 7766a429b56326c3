"""A comparison in a terminal: the headline, one table, what to know before believing it.

Where the table with a column for each number does not fit (it needs about 90 columns), every task is a short block of
lines. Columns follow the comparison's rungs and contrasts; every student has a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perplexity_lies.errors import printable
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import Caution, RungRow, TaskRow
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.read.wording import interval, kept_said, signed
from perplexity_lies.rungs import CONTRASTS, RUNGS
from reports import ladder
from reports.naming import contest, estimates, letters, methods_said, one_sided, rungs_of

TASK_COLUMNS = 20
"""Longer names fold."""
TASKS_NAMED = 8
"""Tasks whose other reading stands in the line of its extractor."""
ASCII = str.maketrans({"−": "-", "→": ">", "–": "-"})


def _name(row: TaskRow, comparison: Comparison) -> str:
    return "overall" if row is comparison.overall else printable(row.task)


def _n(row: TaskRow) -> str:
    return "–".join(map(str, sorted({found.n for found in row.rungs.values()})))


def _bounds(found: Estimate) -> str:
    return interval(found) + ("*" if found.bounded else "")


def _style(found: Estimate) -> str:
    """Red where the interval lies below zero, green where above, plain where it includes zero."""
    return {-1: "red", 0: "", 1: "green"}[found.direction]


def _scores(found: RungRow | None, side: int, between: str) -> str:
    """The baseline's score and a student's."""
    return between.join(f"{found.sides[i].score.value:.1f}" for i in (0, side)) if found else "–"


def _gap(found: Estimate | None, *, inline: bool = False) -> Text:
    if found is None:
        return Text("–")
    text = Text(signed(found.value), style=f"bold {_style(found)}".strip())
    return text.append(" " if inline else "\n").append(_bounds(found), style="dim")


def _contrast(found: Estimate | None, alone: str, *, inline: bool = False) -> Text:
    """The estimate; without one, the words for a task of one rung."""
    if found is None and alone:
        return Text(alone if inline else alone.replace(" by ", " by\n"), style="dim")
    return _gap(found, inline=inline)


def _fell_back(comparison: Comparison) -> bool:
    """Whether a fallback rule read any answer: then its share stands between answered and cut."""
    return any(side.fallbacks for row in comparison.tasks for found in row.rungs.values() for side in found.sides)


def _answered(found: RungRow | None, side: int, between: str, fell_back: bool) -> str:
    if found is None:
        return "–"
    pair = (found.sides[0], found.sides[side])
    shares = [(each.coverage, *((each.fallback,) if fell_back else ()), each.truncation) for each in pair]
    return between.join(", ".join(f"{100 * share:.0f}" for share in each) for each in shares)


def _wide(comparison: Comparison) -> Table:
    """A column for each number, a line of two for each task and student."""
    rungs, several = rungs_of(comparison), len(comparison.students) > 1
    replying, fell_back = [rung for rung in rungs if rung.replies], _fell_back(comparison)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("task\nn", overflow="fold", max_width=TASK_COLUMNS)
    headers = [header for rung in rungs for header in (f"{rung.short} %\nT, S", "gap, pp\n[95 %]")]
    headers += [f"{contrast.title}\n[95 %]" for contrast in CONTRASTS]
    headers += [
        f"{rung.short + ' ' if len(replying) > 1 else ''}answered,\n{'fallback, ' * fell_back}cut %"
        for rung in replying
    ]
    for header in ["\nS"] * several + headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in comparison.rows:
        if row is comparison.overall:
            table.add_section()
        name = Text(_name(row, comparison), style="bold" if row is comparison.overall else "")
        name.append(f"\n{_n(row)}", style="not bold dim")
        alone = one_sided(comparison, row, short=True)
        for side, letter in list(enumerate(letters(comparison)))[1:]:
            cells: list[RenderableType] = [letter] if several else []
            for rung in rungs:
                cells += [_scores(row.rungs.get(rung.name), side, "\n"), _gap(row.gap(rung.name, side))]
            cells += [_contrast(row.contrast(contrast.name, side), alone) for contrast in CONTRASTS]
            cells += [_answered(row.rungs.get(rung.name), side, "\n", fell_back) for rung in replying]
            table.add_row(name if side == 1 else "", *cells)
    return table


def _narrow(comparison: Comparison) -> Iterator[RenderableType]:
    """A block of lines for each task."""
    rungs, several, fell_back = rungs_of(comparison), len(comparison.students) > 1, _fell_back(comparison)
    for row in comparison.rows:
        yield Text(f"\n{_name(row, comparison)}", style="bold").append(f"  n {_n(row)}", style="not bold dim")
        for side, letter in list(enumerate(letters(comparison)))[1:]:
            if several:
                yield Text(f" {letter}", style="bold")
            grid = Table.grid(padding=(0, 1))
            for _ in range(3):
                grid.add_column(overflow="fold")
            for rung in rungs:
                found = row.rungs.get(rung.name)
                grid.add_row(
                    f"  {rung.short}", _scores(found, side, " → "), _gap(row.gap(rung.name, side), inline=True)
                )
            for contrast in CONTRASTS:
                found_contrast = row.contrast(contrast.name, side)
                alone = one_sided(comparison, row, short=True)
                grid.add_row(f"  {contrast.title.split()[0]}", "", _contrast(found_contrast, alone, inline=True))
            yield grid
            for rung in rungs:
                if rung.replies and rung.name in row.rungs:
                    said = _answered(row.rungs[rung.name], side, " → ", fell_back)
                    yield Text(f"  answered, {'fallback, ' * fell_back}cut {said} %", style="dim")


def _other_readings(comparison: Comparison) -> Iterator[str]:
    """A line for each extractor and rung: the gaps that it reads in the same replies."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for row in comparison.tasks:
        for rung, found in row.rungs.items():
            for extractor, sides in found.readings.items():
                values = " / ".join(signed(side.gap.value) for side in sides if side.gap)
                gaps.setdefault((extractor, rung), []).append(f"{row.task} {values}")
    for (extractor, rung), said in gaps.items():
        more = f" and {len(said) - TASKS_NAMED} more in the report" if len(said) > TASKS_NAMED else ""
        yield f"{extractor} reads the {RUNGS[rung].title} gap as {', '.join(said[:TASKS_NAMED])} pp{more}"


def _notes(comparison: Comparison) -> Iterator[RenderableType]:
    """What the letters mean, other readings, cautions."""
    sides = zip(letters(comparison), comparison.sides, strict=True)
    key = ", ".join(f"{letter} {side.label}" for letter, side in sides)
    by_fallback = "; fallback: found, though not in the form that was asked for" if _fell_back(comparison) else ""
    yield Text(f"{key}; answered: an answer was found{by_fallback}; cut: the reply hit its budget", style="dim")
    if any(found.bounded for row in comparison.rows for found in estimates(row)):
        yield Text("* no item differs: the bound is what n items cannot exclude", style="dim")
    yield Text(printable(f"intervals: {methods_said(comparison)}"), style="dim")
    for side, letter in list(enumerate(letters(comparison)))[1:] if comparison.overall else []:
        assert comparison.overall is not None
        kept = f"overall, {letter} keeps of T's score above chance, %: {kept_said(comparison.overall, side)}"
        yield Text(printable(kept), style="dim")
    yield from (Text(printable(line)) for line in _other_readings(comparison))
    by_kind: dict[str, list[Caution]] = {}
    for caution in comparison.cautions:
        by_kind.setdefault(caution.kind, []).append(caution)
    for kind, same in by_kind.items():
        where = ", ".join(dict.fromkeys(caution.task for caution in same if caution.task))
        said = same[0].text if len(same) == 1 else f"{kind} ({len(same)} cautions, in the report)"
        yield Text("! ", style="yellow").append(
            printable(f"{where}: {said}" if where else said), style="not bold default"
        )


class _Rendered:
    """Chooses the layout when the width is known."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        comparison = self.comparison
        headline = Text(printable(comparison.headline()), style="bold red" if comparison.guard_failures else "bold")
        parts: list[RenderableType] = [Text(printable(contest(comparison)), style="dim"), headline]
        if comparison.partial:
            parts.append(Text(printable(f"PARTIAL: {comparison.partial_why}."), style="bold yellow"))
        table = _wide(comparison)
        if table.__rich_measure__(console, options.update(max_width=10_000)).maximum <= options.max_width:
            parts.append(table)
        else:
            parts += [*_narrow(comparison), Text("")]
        parts += ladder.parts(comparison)
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
