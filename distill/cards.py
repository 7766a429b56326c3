"""Model cards: what a checkpoint is, how it was made, at what cost, how it scores. Only measured figures.

The words are in `card.md.j2`; nothing here knows how a figure was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import jinja2
from safetensors import safe_open

from distill.measure import TaskScores
from distill.recipe import Recipe
from distill.selection import Selection
from distill.train import Tally

CEILING_PERCENT = 99
"""A task on which both checkpoints reach this is at its ceiling."""


def count_parameters(directory: Path) -> int:
    """Parameters of a checkpoint directory, tied ones once."""
    with safe_open(directory / "model.safetensors", framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())


def at_ceiling(scores: Mapping[str, Mapping[str, TaskScores]], *fields: str) -> list[str]:
    """Tasks on which every checkpoint reaches the ceiling in all of these fields."""
    tasks = next(iter(scores.values()))
    return [
        task
        for task in tasks
        if all(getattr(by_task[task], name) >= CEILING_PERCENT for by_task in scores.values() for name in fields)
    ]


def write_cards(
    recipe: Recipe,
    directory: Path,
    tallies: Mapping[str, Tally],
    selection: Selection,
    scores: Mapping[str, Mapping[str, TaskScores]],
) -> None:
    """Writes README.md into `directory/teacher` and `directory/student`."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = (resources.files("distill") / "card.md.j2").read_text(encoding="utf-8")
    template = environment.from_string(text)
    saturated = at_ceiling(scores, "loglikelihood", "generation")
    for name in ("teacher", "student"):
        card = template.render(
            name=name,
            recipe=recipe,
            shape=recipe.teacher,
            parameters=count_parameters(directory / name),
            selection=selection,
            stages=[(s, tallies[s.name]) for s in recipe.stages if (s.kind == "pretrain") == (name == "teacher")],
            scores=scores,
            ceiling=CEILING_PERCENT,
            saturated=saturated,
            ceiling_only=[task for task in at_ceiling(scores, "loglikelihood") if task not in saturated],
        )
        (directory / name / "README.md").write_text(card.rstrip() + "\n", encoding="utf-8")
