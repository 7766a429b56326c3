"""A grid: recipes that differ in one thing each, for several training seeds, and the effects to look for between them.

name: objectives
recipe: miniature
seeds: [0, 1, 2]
arms: {kd: {}, sft: {set: [stage3b.objective=sft]}}
effects: [{name: KD - SFT, of: kd, against: sft, paper: {generation: 12.1}}]
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import MinLen

from distill.recipe.files import build_recipe, overlaid, read_bundled, read_recipe
from distill.recipe.settings import Natural, Recipe
from perplexity_lies.checked import Checked, checked
from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.rungs import RUNGS

SEED_STRIDE = 1000
"""Between the data seeds of two training seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm(Checked):
    """One way to train the student."""

    set: tuple[str, ...] = ()
    """Overlays on the grid's recipe."""
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(Checked):
    """Two arms, and what was found between them elsewhere."""

    name: str
    of: str
    against: str
    paper: dict[str, float] = field(default_factory=dict)
    """Rung -> effect in points; its sign is the claim that is tested."""
    where: str = ""
    """Where the paper says so."""

    def __post_init__(self) -> None:
        for rung in self.paper:
            if rung not in RUNGS:
                raise UsageError(
                    f"effect '{self.name}': unknown rung {rung!r}{nearest(rung, RUNGS)}",
                    found=f"rungs: {', '.join(RUNGS)}",
                    mend="paper: {generation: 12.1}",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(Checked):
    """What is trained and compared."""

    name: str
    recipe: str
    teacher: str = ""
    """Checkpoint in the place of the recipe's teacher; empty keeps the recipe's."""
    seeds: Annotated[tuple[Natural, ...], MinLen(1)] = (0, 1, 2)
    set: tuple[str, ...] = ()
    """Overlays on every arm."""
    arms: Annotated[dict[str, Arm], MinLen(1)]
    effects: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        twice = sorted(seed for seed, count in Counter(self.seeds).items() if count > 1)
        if twice:
            raise UsageError("a grid's seeds are different", found=f"{twice[0]} stands twice", mend="seeds: [0, 1, 2]")
        for claim in self.effects:
            for arm in (claim.of, claim.against):
                if arm not in self.arms:
                    raise UsageError(
                        f"effect '{claim.name}' names arm '{arm}', which the grid lacks{nearest(arm, self.arms)}",
                        found=f"arms: {', '.join(self.arms)}",
                        mend="spell it as one of these, or add the arm",
                    )


def load_grid(name: str) -> Grid:
    """A bundled grid by name, or a grid file by path, with every arm's recipe tried.

    Raises MissingError or UsageError saying what is wrong.
    """
    raw, where = read_bundled("grids", name, "plies distill ablate NAME --out DIR")
    arms = raw.get("arms")
    if isinstance(arms, dict):
        raw["arms"] = {arm: {} if given is None else given for arm, given in arms.items()}
    grid = checked(Grid, raw, where)
    for arm in grid.arms.values():
        arm_recipe(grid, arm, grid.seeds[0])
    return grid


def arm_recipe(grid: Grid, arm: Arm, seed: int) -> Recipe:
    """The recipe of an arm with a training seed. Raises UsageError on overlays that lead nowhere."""
    raw, where = read_recipe(grid.recipe)
    teacher = [f"teacher={grid.teacher}"] if grid.teacher else []
    recipe = build_recipe(overlaid(raw, [*teacher, *grid.set, *arm.set]), where)
    stages = tuple(
        stage
        if stage.kind == "pretrain"
        else dataclasses.replace(stage, data_seed=stage.data_seed + SEED_STRIDE * seed)
        for stage in recipe.stages
    )
    return dataclasses.replace(recipe, seed=recipe.seed + seed, stages=stages)


def suite_of(grid: Grid) -> str:
    """The suite on which the arms are measured. Raises UsageError when the recipe names none."""
    suite = arm_recipe(grid, Arm(), grid.seeds[0]).suite
    if not suite:
        raise UsageError(
            f"grid '{grid.name}' has nothing to measure its arms on",
            found=f"recipe '{grid.recipe}' names no suite",
            mend="set: [suite=miniature]",
        )
    return suite
