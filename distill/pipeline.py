"""A recipe from beginning to end: teacher, alignment, layer selection, distillation, checkpoint, cards, report.

    run_recipe(load_recipe("miniature"), Path("build/pair"))

The stages are `distill.workshop`'s, the measuring on the way is `distill.curve`'s. What measures is a function that the
caller gives (`perplexity_lies.in_the_loop.measurer`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml
from transformers import PreTrainedModel

from distill.curve import Curve, best_point
from distill.export import export_checkpoint
from distill.pages.cards import write_cards
from distill.pages.report import write_report
from distill.plan.check import check_names
from distill.recipe.files import build_recipe, read_recipe
from distill.recipe.settings import Recipe
from distill.training.distributed import is_first, wait_for_all
from distill.workshop import Teacher, Workshop
from perplexity_lies.errors import UsageError
from perplexity_lies.files import write_whole
from perplexity_lies.in_the_loop import Measure
from perplexity_lies.read.scores import Scores
from perplexity_lies.rungs import RUNGS


def keep_recipe(recipe: Recipe, directory: Path) -> None:
    """Writes the resolved recipe into its directory.

    Its `history` changes no weights and may differ. Raises UsageError when another recipe was run there.
    """
    path = directory / "recipe.yaml"
    if path.exists():
        kept = build_recipe(*read_recipe(str(path)))
        fields = (field.name for field in dataclasses.fields(Recipe) if field.name != "history")
        differing = [name for name in fields if getattr(kept, name) != getattr(recipe, name)]
        if differing:
            raise UsageError(
                f"{directory} holds another recipe's run",
                found=f"{path} differs from recipe '{recipe.name}' in: {', '.join(differing)}",
                mend="choose another --out directory",
            )
    write_whole(path, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))


def export_student(
    recipe: Recipe, directory: Path, teacher: Teacher, student: PreTrainedModel, curve: Curve | None
) -> None:
    """Writes `directory/student`: the last weights, or the best that were measured."""
    path = directory / "student"
    if curve is None or recipe.select_by == "last":
        export_checkpoint(student, teacher.tokenizer, path)
        return
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(directory / best_point(curve.points, recipe.select_by).checkpoint, path)


def run_recipe(
    recipe: Recipe,
    directory: Path,
    *,
    device: str = "cpu",
    measure: Measure | None = None,
    report_to: Sequence[str] = (),
    sharded: bool = False,
) -> dict[str, Scores]:
    """Makes `directory/student` (and `teacher`) with cards and a report; returns scores by checkpoint.

    Calling it again on the same directory continues an interrupted run. `report_to` names trackers beside the stages' own
    `metrics.jsonl` (`training.metrics.WRITERS`); `sharded` spreads the student over torchrun's processes in stages 3 (FSDP2).
    Raises UsageError when the recipe names what is not there or the directory belongs to another recipe, TrainingError when
    a stage diverges or does not find what the last one left.
    """
    check_names(recipe)
    if recipe.select_by in RUNGS and measure is None:
        raise UsageError(
            f"select_by {recipe.select_by} needs something that measures", found="none", mend="measure=measurer(...)"
        )
    if is_first():
        keep_recipe(recipe, directory)
    shop = Workshop(directory, device=device, report_to=report_to, sharded=sharded)
    teacher = shop.teacher(recipe)
    hybrid = shop.assemble(recipe, teacher, shop.align(recipe, teacher, [recipe.student.mixer]))
    curve = None
    if measure is not None or recipe.select_by != "last":
        kl, keep = partial(shop.kl, recipe, teacher), recipe.select_by != "last"
        curve = Curve(directory, hybrid.model, teacher.tokenizer, kl=kl, measure=measure, keep=keep)
    student = shop.distil(recipe, teacher, hybrid, None if curve is None else curve.look)
    scores: dict[str, Scores] = {}
    if is_first():
        export_student(recipe, directory, teacher, student, curve)
        if measure is not None:
            scores = {"teacher": measure(teacher.path), "student": measure(directory / "student")}
            plain = {name: dataclasses.asdict(found) for name, found in scores.items()}
            write_whole(directory / "scores.json", json.dumps(plain, indent=2) + "\n")
        write_cards(recipe, directory, teacher.name, shop.tallies, hybrid.selection, scores)
        write_report(recipe, directory, shop.tallies, curve.points if curve else (), scores)
    wait_for_all()
    return scores
