"""The distillation report: one page with the gap on every rung against tokens, what each stage cost, and the final scores.

Plots by plotly, offline. The words are in `report.html.j2`, which escapes what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from distill.curve import Point
from distill.recipe.settings import Recipe
from distill.training.train import Tally
from perplexity_lies.files import write_whole
from perplexity_lies.read.scores import Scores
from perplexity_lies.rungs import RUNGS
from perplexity_lies.templates import pages


def gap_curve(points: Sequence[Point], teacher: Scores) -> go.Figure:
    """Student minus teacher in points on each rung, over the tokens of stages 3."""
    figure = go.Figure()
    for name in teacher.rungs:
        measured = [point for point in points if name in point.scores]
        figure.add_scatter(
            x=[point.tokens for point in measured],
            y=[point.scores[name] - teacher.percent(name) for point in measured],
            text=[f"{point.stage}, step {point.step}" for point in measured],
            name=RUNGS[name].title,
            mode="lines+markers",
            line={"color": RUNGS[name].colour},
            marker={"symbol": RUNGS[name].symbol},
        )
    figure.add_hline(y=0, line_dash="dot", line_color="#888888", annotation_text="teacher")
    figure.update_layout(
        xaxis_title="tokens of stages 3", yaxis_title="gap to the teacher, points", template="plotly_white", height=420,
        margin={"t": 20}, legend={"orientation": "h", "y": 1.1},
    )  # fmt: skip
    return figure


def write_report(
    recipe: Recipe, directory: Path, tallies: Mapping[str, Tally], points: Sequence[Point], scores: Mapping[str, Scores]
) -> Path:
    """Writes `directory/report.html` and returns its path."""
    curve = gap_curve(points, scores["teacher"]).to_json().replace("</", "<\\/") if points and scores else ""
    measured = {rung for point in points for rung in point.scores} | {
        r for found in scores.values() for r in found.rungs
    }
    page = pages("distill", "pages").get_template("report.html.j2").render(
        recipe=recipe,
        stages=[(stage, tallies[stage.name]) for stage in recipe.stages if stage.name in tallies],
        points=points,
        rungs=[rung for rung in RUNGS.values() if rung.name in measured],
        tables={name: {line.task: line for line in found.lines()} for name, found in scores.items()},
        curve=curve,
        plotly=get_plotlyjs() if curve else "",
    )  # fmt: skip
    return write_whole(directory / "report.html", page)
