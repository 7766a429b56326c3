"""The two figures of a comparison, as plotly figures.

`scores`: for each task and protocol a line from the teacher's score (hollow) to the student's (filled). `gaps`: a
forest plot of the gap under each protocol and of the hidden gap. Protocols differ in colour (blue and vermillion, told
apart with any colour vision) and in shape. Knows nothing of pages; text colours are left to the page's theme.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from perplexity_lies.read.comparison import Comparison, TaskRow, interval, signed
from perplexity_lies.read.stats.bootstrap import Estimate
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD

COLOURS = {LOGLIKELIHOOD: "#2f8fd0", GENERATION: "#d9601a", "hidden gap": "#8b6fc4"}
SYMBOLS = {LOGLIKELIHOOD: "circle", GENERATION: "square", "hidden gap": "diamond"}
SPOKEN = {LOGLIKELIHOOD: "log-likelihood", GENERATION: "generation", "hidden gap": "hidden gap"}
GREY = "#8a8f98"
LABEL_CHARACTERS = 24
"""Beyond this a task's name would leave the plot no width on a phone."""
ROW_PX = 52
FRAME_PX = 96
"""Legend and axis, above and below the rows."""


def _label(row: TaskRow, comparison: Comparison) -> str:
    """plotly reads a little HTML in labels; a task's name is not HTML."""
    if row is comparison.overall:
        return "<b>overall</b>"
    name = row.task if len(row.task) <= LABEL_CHARACTERS else row.task[: LABEL_CHARACTERS - 1] + "…"
    return html.escape(name, quote=False)


def _figure(comparison: Comparison, x_title: str) -> go.Figure:
    """Axes with a row for each task, first on top, the overall row last below a line."""
    rows = comparison.rows
    figure = go.Figure()
    figure.update_layout(
        height=FRAME_PX + ROW_PX * max(1, len(rows)),
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
    found: Sequence[tuple[float, Estimate, str]], kind: str, name: str, *, hollow: bool = False, shown: bool = True
) -> go.Scatter:
    """`found`: (y, estimate, hover text)."""
    colour = COLOURS[kind]
    return go.Scatter(
        x=[each.value for _, each, _ in found],
        y=[y for y, _, _ in found],
        error_x=_whiskers([each for _, each, _ in found]) | {"color": colour},
        mode="markers",
        name=name,
        showlegend=shown,
        marker={"size": 10, "color": colour, "symbol": SYMBOLS[kind] + ("-open" if hollow else ""),
                "line": {"width": 2, "color": colour}},
        text=[text for _, _, text in found],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def scores(comparison: Comparison) -> go.Figure:
    """Teacher and student under both protocols, percent, with 95 % intervals."""
    figure = _figure(comparison, "score, %")
    figure.update_xaxes(range=[-3, 103])
    for protocol, offset in ((LOGLIKELIHOOD, 0.16), (GENERATION, -0.16)):
        lanes = [(offset - i, row, found) for i, row in enumerate(comparison.rows) if (found := row.protocol(protocol))]
        line_x: list[float | None] = []
        line_y: list[float | None] = []
        for y, _, found in lanes:
            line_x += [found.teacher.score.value, found.student.score.value, None]
            line_y += [y, y, None]
        line = {"color": COLOURS[protocol], "width": 4}
        figure.add_scatter(
            x=line_x, y=line_y, mode="lines", line=line, opacity=0.35, hoverinfo="skip", showlegend=False
        )
        for side in ("teacher", "student"):
            points = []
            for y, row, found in lanes:
                score = getattr(found, side).score
                text = f"{_label(row, comparison)}, {SPOKEN[protocol]}<br>{side} {score.value:.1f} %"
                points.append((y, score, f"{text} {interval(score, sign=False)}, n {score.n}"))
            name = f"{SPOKEN[protocol]}: {side}"
            figure.add_trace(_points(points, protocol, name, hollow=side == "teacher"))
    return figure


def gaps(comparison: Comparison) -> go.Figure:
    """The gap under each protocol and the hidden gap, percentage points, with 95 % intervals."""
    figure = _figure(comparison, "student minus teacher, percentage points")
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5}, layer="below")
    kinds: tuple[tuple[str, float, Callable[[TaskRow], Estimate | None]], ...] = (
        (LOGLIKELIHOOD, 0.24, lambda row: row.loglikelihood.gap if row.loglikelihood else None),
        (GENERATION, 0.0, lambda row: row.generation.gap if row.generation else None),
        ("hidden gap", -0.24, lambda row: row.hidden_gap),
    )
    for kind, offset, of in kinds:
        points = []
        for i, row in enumerate(comparison.rows):
            found = of(row)
            if found:
                text = f"{_label(row, comparison)}, {SPOKEN[kind]}<br>{signed(found.value)} pp {interval(found)}"
                points.append((offset - i, found, f"{text}, n {found.n}"))
        figure.add_trace(_points(points, kind, SPOKEN[kind]))
    return figure
