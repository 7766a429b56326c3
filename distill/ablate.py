"""Trains and measures a grid of recipes that differ in one thing each, and writes what was found.

Arms that begin alike share what they have in common: the teacher, stages 1 and 2 (several mixers in the same teacher
passes), and any further stages up to where they part. A training seed shifts the first weights and every stage's data.
What is finished is not done again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from distill.export import export_checkpoint
from distill.pages.ablation import Ablation, markdown, summary
from distill.plan.check import check_names
from distill.recipe.grids import Arm, Grid, arm_recipe
from distill.recipe.settings import Recipe
from distill.workshop import Aligned, Teacher, Workshop, alignment_settings, mixer_name
from perplexity_lies.checked import checked
from perplexity_lies.digests import short_key, without_defaults
from perplexity_lies.errors import UsageError
from perplexity_lies.files import read_json, write_whole
from perplexity_lies.in_the_loop import Measure
from perplexity_lies.read.scores import Scores
from perplexity_lies.rungs import RUNGS


def _alignment_key(recipe: Recipe) -> str:
    """Recipes with equal keys can be aligned in the same teacher passes."""
    stages = [without_defaults(stage) for stage in recipe.stages if stage.kind in ("1", "2")]
    return short_key([stages, alignment_settings(recipe.student), recipe.seed])


def _check_arms(grid: Grid) -> None:
    """Raises UsageError for what an arm names and nobody has, before anything is trained."""
    for name, arm in grid.arms.items():
        recipe = arm_recipe(grid, arm, grid.seeds[0])
        check_names(recipe)
        if recipe.select_by != "last":
            raise UsageError(
                f"arm '{name}': a grid measures the last weights",
                found=f"select_by {recipe.select_by}",
                mend="select_by: last",
            )


class _Bench:
    """A grid under way: the workshop, the teacher, what was aligned."""

    def __init__(self, grid: Grid, directory: Path, device: str, measure: Measure, console: Console) -> None:
        self.grid, self.directory, self.measure, self.console = grid, directory, measure, console
        self.shop = Workshop(directory, device=device)
        self.teacher: Teacher = self.shop.teacher(arm_recipe(grid, Arm(), 0))

    def scores_path(self, arm: str, seed: int) -> Path:
        """Where an arm's scores lie."""
        return self.directory / "arms" / arm / f"seed{seed}" / "scores.json"

    def scores(self, arm: str, seed: int) -> Scores:
        """An arm's scores, read back."""
        path = self.scores_path(arm, seed)
        mend = f"delete {path}: it will be measured again"
        return checked(Scores, read_json(path, f"{path} holds no scores", mend), str(path), mend)

    def run_seed(self, seed: int) -> None:
        """Trains and measures every arm that has no scores yet."""
        recipes = {name: arm_recipe(self.grid, arm, seed) for name, arm in self.grid.arms.items()}
        mixers: dict[str, dict[str, str | tuple[str, ...]]] = {}
        for recipe in recipes.values():
            mixers.setdefault(_alignment_key(recipe), {})[mixer_name(recipe.student.mixer)] = recipe.student.mixer
        aligned: dict[str, Aligned] = {}
        for name, recipe in recipes.items():
            if self.scores_path(name, seed).exists():
                continue
            common = _alignment_key(recipe)
            if common not in aligned:
                aligned[common] = self.shop.align(recipe, self.teacher, list(mixers[common].values()))
            scores = self._run_arm(recipe, aligned[common], self.scores_path(name, seed))
            shown = ", ".join(f"{RUNGS[rung].title} {scores.percent(rung):.1f}" for rung in scores.rungs)
            self.console.print(f"{name}, seed {seed}: {shown}", highlight=False)

    def _run_arm(self, recipe: Recipe, aligned: Aligned, path: Path) -> Scores:
        """Trains one arm from what was aligned, exports and measures it; its scores are written last."""
        hybrid = self.shop.assemble(recipe, self.teacher, aligned)
        student = self.shop.distil(recipe, self.teacher, hybrid)
        export_checkpoint(student, self.teacher.tokenizer, path.parent / "student")
        scores = self.measure(path.parent / "student")
        made = {"kept": hybrid.selection.kept, "kl": self.shop.kl(recipe, self.teacher, student)}
        for name, content in (
            ("recipe.json", recipe.to_dict()),
            ("made.json", made),
            (path.name, dataclasses.asdict(scores)),
        ):
            write_whole(path.with_name(name), json.dumps(content, indent=2) + "\n")
        return scores


def run_grid(
    grid: Grid, directory: Path, *, device: str, measure: Measure, seeds: Sequence[int] = (), console: Console
) -> Ablation | None:
    """Trains and measures the grid in `directory`; returns what was found and writes it as `ablation.json` and `.md`.

    `seeds` trains these alone, so that several processes can share the work, each its seeds; the summary is written by the
    call that finds all of them done, otherwise None is returned. Raises UsageError on a seed that the grid lacks, and for
    what an arm names and nobody has.
    """
    strangers = [seed for seed in seeds if seed not in grid.seeds]
    if strangers:
        known = ", ".join(map(str, grid.seeds))
        raise UsageError(
            f"the grid has no seed {strangers[0]}", found=f"seeds: {known}", mend=f"--seed {grid.seeds[0]}"
        )
    _check_arms(grid)
    bench = _Bench(grid, directory, device, measure, console)
    for seed in seeds or grid.seeds:
        bench.run_seed(seed)
    if not all(bench.scores_path(name, seed).exists() for name in grid.arms for seed in grid.seeds):
        return None
    scores = {name: [bench.scores(name, seed) for seed in grid.seeds] for name in grid.arms}
    found = summary(grid, scores, measure(bench.teacher.path))
    write_whole(directory / "ablation.json", json.dumps(dataclasses.asdict(found), indent=2) + "\n")
    write_whole(directory / "ablation.md", markdown(found))
    return found
