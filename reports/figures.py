"""The two figures of a comparison, as plotly figures.

`scores`: for each task, rung and student a line from the baseline's score (hollow) to the student's (filled).
`gaps`: a forest plot of the gap on each rung and of each contrast. Colours and shapes come from the table of rungs; where
there are several students, a point bears its student's number. Text colours are left to the page's theme.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import TaskRow
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.read.wording import interval, signed
from perplexity_lies.rungs import CONTRASTS, Contrast, Rung
from reports.naming import rungs_of

GREY = "#8a8f98"
LABEL_CHARACTERS = 24
"""Beyond this a task's name would leave the plot no width on a phone."""
ROW_PX = 52
LANE_PX = 17
"""A task's row is as high as its lanes need, and at least `ROW_PX`."""
FRAME_PX = 96
"""Legend and axis, above and below the rows."""
SPREAD, WIDEST_LANE = 0.85, 0.28
"""Share of a row that its lanes take, and the most that one may."""

Point = tuple[float, Estimate, str, int]
"""y, estimate, hover text, student."""


def _label(row: TaskRow, comparison: Comparison) -> str:
    """plotly reads a little HTML in labels; a task's name is not HTML."""
    if row is comparison.overall:
        return "<b>overall</b>"
    name = row.task if len(row.task) <= LABEL_CHARACTERS else row.task[: LABEL_CHARACTERS - 1] + "…"
    return html.escape(name, quote=False)


def _lanes(kinds: int, students: int) -> list[list[float]]:
    """Offset from the middle of a task's row by kind, then student; all students of a kind lie together, first on top."""
    lanes = kinds * students
    step = min(WIDEST_LANE, SPREAD / lanes)
    offsets = [step * ((lanes - 1) / 2 - i) for i in range(lanes)]
    return [offsets[kind * students : (kind + 1) * students] for kind in range(kinds)]


def _figure(comparison: Comparison, x_title: str) -> go.Figure:
    """Axes with a row for each task, first on top, the overall row last below a line; rows are equally high in both."""
    rows = comparison.rows
    lanes = (len(rungs_of(comparison)) + len(CONTRASTS)) * len(comparison.students)
    figure = go.Figure()
    figure.update_layout(
        height=FRAME_PX + max(ROW_PX, LANE_PX * lanes) * max(1, len(rows)),
        margin={"l": 8, "r": 12, "t": 34, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "size": 13, "color": GREY},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False},
        hoverlabel={"font": {"family": "inherit", "size": 13}},
        xaxis={
            "title": {"text": x_title, "standoff": 8, "font": {"size": 13}},
            "gridcolor": "rgba(138,143,152,0.22)",
            "zeroline": False,
            "fixedrange": True,
        },
        yaxis={
            "tickmode": "array",
            "tickvals": [-i for i in range(len(rows))],
            "ticktext": [_label(row, comparison) for row in rows],
            "range": [0.6 - len(rows), 0.6],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
        },
    )
    if comparison.overall and comparison.tasks:
        figure.add_hline(y=0.5 - len(comparison.tasks), line={"color": GREY, "width": 1, "dash": "dot"})
    return figure


def _whiskers(found: Sequence[Estimate]) -> dict[str, object]:
    """Distances to the bounds; none where there is no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [each.high - each.value if each.high is not None else 0.0 for each in found],
        "arrayminus": [each.value - each.low if each.low is not None else 0.0 for each in found],
        "thickness": 1.6,
        "width": 0,
    }


def _points(
    found: Sequence[Point], kind: Rung | Contrast, name: str, *, hollow: bool = False, numbered: bool = False
) -> go.Scatter:
    """One trace; `numbered`: each point bears its student's number."""
    return go.Scatter(
        x=[each.value for _, each, *_ in found],
        y=[y for y, *_ in found],
        error_x=_whiskers([each for _, each, *_ in found]) | {"color": kind.colour},
        mode="markers+text" if numbered else "markers",
        text=[str(student) for *_, student in found] if numbered else None,
        textfont={"size": 10},
        name=name,
        marker={"size": 14 if numbered else 10, "color": kind.colour,
                "symbol": kind.symbol + ("-open" if hollow else ""), "line": {"width": 2, "color": kind.colour}},
        hovertext=[text for *_, text, _ in found],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _score_point(comparison: Comparison, row: TaskRow, rung: Rung, side: int, y: float) -> Point:
    score, label = row.rungs[rung.name].sides[side].score, comparison.sides[side].label
    text = f"{_label(row, comparison)}, {rung.title}<br>{label} {score.value:.1f} %"
    return y, score, f"{text} {interval(score, sign=False)}, n {score.n}", side


def scores(comparison: Comparison) -> go.Figure:
    """Baseline and students on all rungs, percent, with 95 % intervals."""
    rungs, students = rungs_of(comparison), len(comparison.students)
    figure = _figure(comparison, "score, %")
    figure.update_xaxes(range=[-3, 103])
    for rung, lanes in zip(rungs, _lanes(len(rungs), students), strict=True):
        pairs = [
            tuple(_score_point(comparison, row, rung, each, lane - i) for each in (0, side))
            for side, lane in enumerate(lanes, 1)
            for i, row in enumerate(comparison.rows)
            if rung.name in row.rungs
        ]
        figure.add_scatter(
            x=[x for (_, one, *_), (_, other, *_) in pairs for x in (one.value, other.value, None)],
            y=[y for (lane, *_), _ in pairs for y in (lane, lane, None)],
            mode="lines", line={"color": rung.colour, "width": 4}, opacity=0.35, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        baseline, student = [one for one, _ in pairs], [other for _, other in pairs]
        figure.add_trace(_points(baseline, rung, f"{rung.title}: {comparison.baseline.label}", hollow=True))
        name = f"{rung.title}: student{'s' if students > 1 else ''}"
        figure.add_trace(_points(student, rung, name, numbered=students > 1))
    return figure


def gaps(comparison: Comparison) -> go.Figure:
    """The gap on each rung and each contrast, percentage points, with 95 % intervals."""
    students = len(comparison.students)
    kinds: list[Rung | Contrast] = [*rungs_of(comparison), *CONTRASTS]
    figure = _figure(comparison, "student minus teacher, percentage points")
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5}, layer="below")
    for kind, lanes in zip(kinds, _lanes(len(kinds), students), strict=True):
        points: list[Point] = []
        for side, lane in enumerate(lanes, 1):
            for i, row in enumerate(comparison.rows):
                found = row.gap(kind.name, side) if isinstance(kind, Rung) else row.contrast(kind.name, side)
                if found:
                    whose = f"{comparison.sides[side].label}, " if students > 1 else ""
                    text = f"{_label(row, comparison)}, {whose}{kind.title}<br>{signed(found.value)} pp"
                    points.append((lane - i, found, f"{text} {interval(found)}, n {found.n}", side))
        figure.add_trace(_points(points, kind, kind.title, numbered=students > 1))
    return figure
