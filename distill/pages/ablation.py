"""What a grid found: every arm with its gap to the teacher, every effect with its verdict, the rankings of both rungs.

    found = summary(grid, {"kd": [scores of seed 0, ...], ...}, teacher)
    markdown(found), render(found)

An effect `hidden` is the effect by generation minus the effect by log-likelihood, item by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from distill.recipe.grids import Claim, Grid
from perplexity_lies.checked import Checked
from perplexity_lies.read.scores import Scores, item_table
from perplexity_lies.read.stats.crossed import Effect, effect
from perplexity_lies.rungs import HIDDEN_GAP, RUNGS
from perplexity_lies.templates import pages

RANKED_BY = HIDDEN_GAP.of
"""Rung by which the tables list arms, best first."""
HIDDEN = "hidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFound(Checked):
    """One arm."""

    about: str
    set: tuple[str, ...]
    percent: dict[str, tuple[float, ...]]
    """Rung -> percent of items, by training seed."""
    tasks: dict[str, dict[str, float]]
    """Task -> rung -> percent of items, mean over training seeds."""
    gap: dict[str, Effect]
    """Rung, or `hidden` -> this arm minus the teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFound(Claim):
    """A claim and what became of it."""

    found: dict[str, Effect]
    """Rung, or `hidden` -> effect."""
    verdict: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation(Checked):
    """`ablation.json`."""

    grid: Grid
    teacher: dict[str, float]
    """Rung -> percent of items."""
    arms: dict[str, ArmFound]
    effects: tuple[ClaimFound, ...]
    rankings: dict[str, tuple[str, ...]]
    """Rung -> arms by mean score, best first."""


def _tables(runs: Sequence[Scores]) -> dict[str, tuple[list[str], NDArray[np.float64]]]:
    """Items and their scores [runs, items] by rung, and `hidden` for the items that both its rungs have."""
    rungs = [rung for rung in runs[0].rungs if all(rung in run.rungs for run in runs)]
    found = {rung: item_table(runs, rung) for rung in rungs}
    if HIDDEN_GAP.of in found and HIDDEN_GAP.minus in found:
        sides = found[HIDDEN_GAP.of], found[HIDDEN_GAP.minus]
        both = sorted(set(sides[0][0]) & set(sides[1][0]))
        shown, behind = (_columns(side, both) for side in sides)
        found[HIDDEN] = both, shown - behind
    return found


def _columns(table: tuple[list[str], NDArray[np.float64]], items: Sequence[str]) -> NDArray[np.float64]:
    """The columns of a table that belong to `items`, in their order."""
    place = {item: column for column, item in enumerate(table[0])}
    return table[1][:, [place[item] for item in items]]


def effects_between(of: Sequence[Scores], against: Sequence[Scores]) -> dict[str, Effect]:
    """Effect by rung, and `hidden`; seeds in the same order on both sides, paired."""
    left, right = _tables(of), _tables(against)
    found = {}
    for name in left:
        if name in right:
            common = sorted(set(left[name][0]) & set(right[name][0]))
            found[name] = effect(_columns(left[name], common) - _columns(right[name], common))
    return found


def verdict(found: Effect, paper_pp: float | None) -> str:
    """What became of the paper's claim: shown, not shown or reversed; without a claim, the sign that was found."""
    if paper_pp is None:
        return {1: "above zero", -1: "below zero", 0: "not distinguished from zero"}[found.sign]
    if found.sign == 0:
        return "not shown"
    return "shown" if found.sign * paper_pp > 0 else "reversed"


def summary(grid: Grid, scores: Mapping[str, Sequence[Scores]], teacher: Scores) -> Ablation:
    """What the grid found. `scores`: arm -> scores by training seed."""
    rungs = teacher.rungs
    arms = {}
    for name, runs in scores.items():
        lines = [{line.task: line.percent for line in run.lines()} for run in runs]
        arms[name] = ArmFound(
            about=grid.arms[name].about,
            set=grid.arms[name].set,
            percent={rung: tuple(run.percent(rung) for run in runs) for rung in rungs},
            tasks={
                task: {rung: float(np.mean([of_seed[task][rung] for of_seed in lines])) for rung in percent}
                for task, percent in lines[0].items()
            },
            gap=effects_between(runs, [teacher] * len(runs)),
        )
    effects = []
    for claim in grid.effects:
        found = effects_between(scores[claim.of], scores[claim.against])
        verdicts = {name: verdict(each, claim.paper.get(name)) for name, each in found.items()}
        effects.append(
            ClaimFound(
                name=claim.name, of=claim.of, against=claim.against, paper=claim.paper, where=claim.where, found=found,
                verdict=verdicts,
            )
        )  # fmt: skip
    return Ablation(
        grid=grid,
        teacher={rung: teacher.percent(rung) for rung in rungs},
        arms=arms,
        effects=tuple(effects),
        rankings={
            rung: tuple(sorted(arms, key=lambda arm: -float(np.mean(arms[arm].percent[rung])))) for rung in rungs
        },
    )


def render(found: Ablation) -> list[Table]:
    """The arms with their rank on each rung, and the effects."""
    rungs = [RUNGS[name] for name in found.rankings]
    arms = Table(title=f"{found.grid.name}: percent of items, mean of {len(found.grid.seeds)} training seeds")
    arms.add_column("arm")
    for rung in rungs:
        arms.add_column(rung.title, justify="right")
        arms.add_column("rank", justify="right")
    for name in found.rankings.get(RANKED_BY) or found.arms:
        cells = []
        for rung in rungs:
            rank = found.rankings[rung.name].index(name) + 1
            cells += [f"{np.mean(found.arms[name].percent[rung.name]):.1f}", str(rank)]
        arms.add_row(name, *cells)
    if not found.effects:
        return [arms]
    effects = Table(title="effects in points, 95 % over items and training seeds")
    columns = {**{rung.name: rung.title for rung in rungs}, HIDDEN: "hidden by log-likelihood"}
    for column in ("effect", *columns.values()):
        effects.add_column(column)
    for claim in found.effects:
        effects.add_row(claim.name, *(_cell(claim, name) for name in columns))
    return [arms, effects]


def _cell(claim: ClaimFound, name: str) -> str:
    if name not in claim.found:
        return ""
    each = claim.found[name]
    return f"{each.pp:+.1f} [{each.low_pp:+.1f}, {each.high_pp:+.1f}] {claim.verdict[name]}"


def markdown(found: Ablation) -> str:
    """The summary as Markdown tables."""
    rungs = [RUNGS[name] for name in found.rankings]
    order = found.rankings.get(RANKED_BY) or tuple(found.arms)
    template = pages("distill", "pages").get_template("ablation.md.j2")
    return template.render(found=found, rungs=rungs, order=order, hidden=HIDDEN).strip() + "\n"
