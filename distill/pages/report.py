"""The distillation report: one page with both gaps against tokens, what each stage cost, and the final scores.

Plots by plotly, offline. The words are in `report.html.j2`, which escapes what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from distill.measure import PROTOCOLS, Point, Scores, percent, task_scores
from distill.recipe.settings import Recipe
from distill.training.train import Tally

NAMES = {"loglikelihood": "log-likelihood", "generation": "generation"}
COLOURS = {"loglikelihood": "#3b6ea5", "generation": "#b5482f"}


def gap_curve(points: Sequence[Point], teacher: Scores) -> go.Figure:
    """Student minus teacher in points under each protocol, over the tokens of stages 3."""
    figure = go.Figure()
    for protocol in PROTOCOLS:
        measured = [point for point in points if protocol in point.scores]
        figure.add_scatter(
            x=[point.tokens for point in measured],
            y=[point.scores[protocol] - percent(teacher, protocol) for point in measured],
            text=[f"{point.stage}, step {point.step}" for point in measured],
            name=NAMES[protocol],
            mode="lines+markers",
            line={"color": COLOURS[protocol]},
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
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = (resources.files("distill.pages") / "report.html.j2").read_text(encoding="utf-8")
    curve = gap_curve(points, scores["teacher"]).to_json().replace("</", "<\\/") if points and scores else ""
    page = environment.from_string(text).render(
        recipe=recipe,
        stages=[(stage, tallies[stage.name]) for stage in recipe.stages if stage.name in tallies],
        points=points,
        names=NAMES,
        protocols=PROTOCOLS,
        tables={name: task_scores(found) for name, found in scores.items()},
        curve=curve,
        plotly=get_plotlyjs() if curve else "",
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
