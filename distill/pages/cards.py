"""Model cards: what a checkpoint is, how it was made, at what cost, how it scores. The words are in `card.md.j2`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from distill.recipe.settings import Recipe, TeacherConfig
from distill.selection import Selection
from distill.training.train import Tally
from perplexity_lies.files import write_whole
from perplexity_lies.read.scores import Scores
from perplexity_lies.rungs import LOGLIKELIHOOD, RUNGS
from perplexity_lies.templates import pages

CEILING_PERCENT = 99
"""A task on which both checkpoints reach this is at its ceiling."""


def count_parameters(directory: Path) -> int:
    """Parameters of a checkpoint directory, tied ones once."""
    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    return total


def at_ceiling(scores: Mapping[str, Scores], rungs: Sequence[str]) -> list[str]:
    """Tasks on which every checkpoint reaches the ceiling on all of these rungs."""
    reached = [
        {line.task for line in found.lines() if all(line.percent.get(r, 0) >= CEILING_PERCENT for r in rungs)}
        for found in scores.values()
    ]
    tasks = next(iter(scores.values())).tasks if scores else {}
    return [task for task in tasks if all(task in by_checkpoint for by_checkpoint in reached)]


def write_cards(
    recipe: Recipe,
    directory: Path,
    teacher: str,
    tallies: Mapping[str, Tally],
    selection: Selection,
    scores: Mapping[str, Scores],
) -> None:
    """Writes README.md into `directory/student`, and into `directory/teacher` when the recipe trained it."""
    template = pages("distill", "pages").get_template("card.md.j2")
    rungs = next(iter(scores.values())).rungs if scores else ()
    saturated = at_ceiling(scores, rungs)
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
            tables={name: found.lines() for name, found in scores.items()},
            rungs=[RUNGS[rung] for rung in rungs],
            ceiling=CEILING_PERCENT,
            saturated=saturated,
            ceiling_only=[task for task in at_ceiling(scores, [LOGLIKELIHOOD]) if task not in saturated],
        )
        write_whole(directory / name / "README.md", card.rstrip() + "\n")
