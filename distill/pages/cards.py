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

from distill.measure import Scores, TaskScores, task_scores
from distill.recipe.settings import Recipe, TeacherConfig
from distill.selection.greedy import Selection
from distill.training.train import Tally

CEILING_PERCENT = 99
"""A task on which both checkpoints reach this is at its ceiling."""


def count_parameters(directory: Path) -> int:
    """Parameters of a checkpoint directory, tied ones once."""
    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    return total


def at_ceiling(scores: Mapping[str, Mapping[str, TaskScores]], *fields: str) -> list[str]:
    """Tasks on which every checkpoint reaches the ceiling in all of these fields."""
    tasks = next(iter(scores.values()), {})
    return [
        task
        for task in tasks
        if all(getattr(by_task[task], name) >= CEILING_PERCENT for by_task in scores.values() for name in fields)
    ]


def write_cards(
    recipe: Recipe,
    directory: Path,
    teacher: str,
    tallies: Mapping[str, Tally],
    selection: Selection,
    scores: Mapping[str, Scores],
) -> None:
    """Writes README.md into `directory/student`, and into `directory/teacher` when the recipe trained it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = (resources.files("distill.pages") / "card.md.j2").read_text(encoding="utf-8")
    template = environment.from_string(text)
    tables = {name: task_scores(found) for name, found in scores.items()}
    saturated = at_ceiling(tables, "loglikelihood", "generation")
    own_teacher = isinstance(recipe.teacher, TeacherConfig)
    for name in ("teacher", "student") if own_teacher else ("student",):
        card = template.render(
            name=name,
            recipe=recipe,
            teacher="../teacher" if own_teacher else teacher,
            own_teacher=own_teacher,
            parameters=count_parameters(directory / name),
            selection=selection,
            stages=[(s, tallies[s.name]) for s in recipe.stages if (s.kind == "pretrain") == (name == "teacher")],
            tables=tables,
            ceiling=CEILING_PERCENT,
            saturated=saturated,
            ceiling_only=[task for task in at_ceiling(tables, "loglikelihood") if task not in saturated],
        )
        (directory / name / "README.md").write_text(card.rstrip() + "\n", encoding="utf-8")
