"""A grid of recipes that differ in one thing each: trained from common stages, measured under both protocols, compared.

    GRID: {name, recipe, teacher, seeds, set: [...], arms: {NAME: {set: [...]}}, effects: [{name, of, against, paper}]}

Arms that begin alike share what they have in common: the teacher, stages 1 and 2 (several mixers in the same teacher
passes), and any further stages up to where they part. A training seed shifts the first weights and every stage's data. What is
finished is not done again. Knows nothing of how a checkpoint is measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from perplexity_lies.read.stats.crossed import Effect, effect
from distill.export import export_checkpoint
from distill.measure import GENERATION, LOGLIKELIHOOD, PROTOCOLS, Measure, Scores, by_item, percent
from distill.pipeline import Aligned, Teacher, Workshop, digest, mixer_name, write_json
from distill.recipe.files import build_recipe, built, overlaid, read_bundled, read_recipe
from distill.recipe.settings import Recipe
from perplexity_lies.errors import UsageError, nearest

SEED_STRIDE = 1000
"""Between the data seeds of two training seeds."""
HIDDEN = "hidden"
"""Effect under generation minus effect under log-likelihood, item by item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train the student."""

    set: tuple[str, ...] = ()
    """Overlays on the grid's recipe."""
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two arms, and what was found between them elsewhere."""

    name: str
    of: str
    against: str
    paper: dict[str, float] = field(default_factory=dict)
    """Protocol -> effect in points; its sign is the claim that is tested."""
    where: str = ""
    """Where the paper says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is trained and compared."""

    name: str
    recipe: str
    teacher: str = ""
    """Checkpoint in the place of the recipe's teacher; empty keeps the recipe's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    set: tuple[str, ...] = ()
    """Overlays on every arm."""
    arms: dict[str, Arm]
    effects: tuple[Contrast, ...] = ()

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds:
            raise UsageError(f"grid '{self.name}' needs at least one arm and one seed")
        for contrast in self.effects:
            for arm in (contrast.of, contrast.against):
                if arm not in self.arms:
                    raise UsageError(
                        f"effect '{contrast.name}' names arm '{arm}', which the grid lacks{nearest(arm, self.arms)}",
                        found=f"arms: {', '.join(self.arms)}",
                    )


def load_grid(name: str) -> Grid:
    """A bundled grid by name, or a grid file by path. Raises MissingError or UsageError saying what is wrong."""
    raw, where = read_bundled("grids", name, "plies distill ablate NAME --out DIR")
    if isinstance(raw.get("arms"), dict):
        raw["arms"] = {arm: built(Arm, given or {}, f"{where}: arms.{arm}") for arm, given in raw["arms"].items()}
    if isinstance(raw.get("effects"), list):
        raw["effects"] = [built(Contrast, given, f"{where}: effects") for given in raw["effects"]]
    grid: Grid = built(Grid, raw, where)
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


def _alignment_of(recipe: Recipe) -> str:
    """Recipes with the same word here can be aligned in the same teacher passes."""
    stages = [dataclasses.asdict(stage) for stage in recipe.stages if stage.kind in ("1", "2")]
    student = {k: v for k, v in dataclasses.asdict(recipe.student).items() if k not in ("mixer", "keep")}
    return digest(stages, student, recipe.seed)


class _Bench:
    """A grid under way: the workshop, the teacher, what was aligned."""

    def __init__(self, grid: Grid, directory: Path, device: str, measure: Measure, console: Console) -> None:
        self.grid, self.directory, self.measure, self.console = grid, directory, measure, console
        self.shop = Workshop(directory, device=device)
        base = arm_recipe(grid, Arm(), 0)
        self.teacher: Teacher = self.shop.teacher(base)

    def scores_path(self, arm: str, seed: int) -> Path:
        """Where an arm's scores lie."""
        return self.directory / "arms" / arm / f"seed{seed}" / "scores.json"

    def run_seed(self, seed: int) -> None:
        """Trains and measures every arm that has no scores yet."""
        recipes = {name: arm_recipe(self.grid, arm, seed) for name, arm in self.grid.arms.items()}
        mixers: dict[str, dict[str, str | tuple[str, ...]]] = {}
        for recipe in recipes.values():
            mixers.setdefault(_alignment_of(recipe), {})[mixer_name(recipe.student.mixer)] = recipe.student.mixer
        aligned: dict[str, Aligned] = {}
        for name, recipe in recipes.items():
            if self.scores_path(name, seed).exists():
                continue
            common = _alignment_of(recipe)
            if common not in aligned:
                aligned[common] = self.shop.align(recipe, self.teacher, list(mixers[common].values()))
            scores = self._run_arm(recipe, aligned[common], self.scores_path(name, seed))
            shown = ", ".join(f"{protocol} {percent(scores, protocol):.1f}" for protocol in PROTOCOLS)
            self.console.print(f"{name}, seed {seed}: {shown}", highlight=False)

    def _run_arm(self, recipe: Recipe, aligned: Aligned, path: Path) -> Scores:
        hybrid, selection, _ = self.shop.distil(recipe, self.teacher, aligned)
        export_checkpoint(hybrid, self.teacher.tokenizer, path.parent / "student")
        scores = self.measure(path.parent / "student")
        write_json(path.with_name("recipe.json"), recipe.to_dict())
        write_json(
            path.with_name("made.json"), {"kept": selection.kept, "kl": self.shop.kl(recipe, self.teacher, hybrid)}
        )
        write_json(path, scores)
        return scores


def run_grid(
    grid: Grid, directory: Path, *, device: str, measure: Measure, seeds: Sequence[int] = (), console: Console
) -> dict[str, Any] | None:
    """Trains and measures the grid in `directory`; returns what was found and writes it as `ablation.json` and `.md`.

    `seeds` trains these alone, so that several processes can share the work, each its seeds; the summary is written by the
    call that finds all of them done, otherwise None is returned. Raises UsageError on a seed that the grid lacks.
    """
    strangers = [seed for seed in seeds if seed not in grid.seeds]
    if strangers:
        raise UsageError(f"the grid has no seed {strangers[0]}", found=f"seeds: {', '.join(map(str, grid.seeds))}")
    bench = _Bench(grid, directory, device, measure, console)
    for seed in seeds or grid.seeds:
        bench.run_seed(seed)
    paths = {name: [bench.scores_path(name, seed) for seed in grid.seeds] for name in grid.arms}
    if not all(path.exists() for arm in paths.values() for path in arm):
        return None
    scores = {name: [json.loads(path.read_text(encoding="utf-8")) for path in arm] for name, arm in paths.items()}
    found = summary(grid, scores, measure(bench.teacher.path))
    write_json(directory / "ablation.json", found)
    (directory / "ablation.md").write_text(markdown(found), encoding="utf-8")
    return found


def table_of(runs: Sequence[Scores], protocol: str) -> tuple[list[str], NDArray[np.float64]]:
    """Items and their scores [seeds, items]; items that one of the runs lacks are left out."""
    answers = [by_item(run, protocol) for run in runs]
    items = sorted(set.intersection(*(set(run) for run in answers)))
    return items, np.array([[run[item] for item in items] for run in answers])


def _arrays(runs: Sequence[Scores]) -> dict[str, tuple[list[str], NDArray[np.float64]]]:
    """By protocol, and generation minus log-likelihood for the items that both asked."""
    found = {protocol: table_of(runs, protocol) for protocol in PROTOCOLS}
    (asked, generated), (ranked_items, ranked) = found[GENERATION], found[LOGLIKELIHOOD]
    both = sorted(set(asked) & set(ranked_items))
    columns = [[items.index(item) for item in both] for items in (asked, ranked_items)]
    found[HIDDEN] = both, generated[:, columns[0]] - ranked[:, columns[1]]
    return found


def contrast(of: Sequence[Scores], against: Sequence[Scores]) -> dict[str, Effect]:
    """Effect by protocol, and `hidden`; seeds in the same order on both sides, paired."""
    left, right = _arrays(of), _arrays(against)
    effects = {}
    for name in left:
        common = sorted(set(left[name][0]) & set(right[name][0]))
        sides = [side[name][1][:, [side[name][0].index(item) for item in common]] for side in (left, right)]
        effects[name] = effect(sides[0] - sides[1])
    return effects


def verdict(found: Effect, paper_pp: float | None) -> str:
    """What became of the paper's claim: shown, not shown or reversed; without a claim, the sign that was found."""
    if paper_pp is None:
        return {1: "above zero", -1: "below zero", 0: "not distinguished from zero"}[found.sign]
    if found.sign == 0:
        return "not shown"
    return "shown" if found.sign * paper_pp > 0 else "reversed"


def summary(grid: Grid, scores: Mapping[str, Sequence[Scores]], teacher: Scores) -> dict[str, Any]:
    """Plain values: the teacher, every arm with its gap to the teacher, every effect, and both rankings."""
    arms: dict[str, Any] = {}
    for name, runs in scores.items():
        gaps = contrast(runs, [teacher] * len(runs))
        arms[name] = {
            "about": grid.arms[name].about,
            "set": list(grid.arms[name].set),
            "percent": {p: [percent(run, p) for run in runs] for p in PROTOCOLS},
            "tasks": {task: {p: _task_mean(runs, task, p) for p in PROTOCOLS} for task in runs[0]},
            "gap": {protocol: dataclasses.asdict(gap) for protocol, gap in gaps.items()},
        }
    effects = []
    for asked in grid.effects:
        measured = contrast(scores[asked.of], scores[asked.against])
        effects.append(
            {
                **dataclasses.asdict(asked),
                "found": {protocol: dataclasses.asdict(found) for protocol, found in measured.items()},
                "verdict": {p: verdict(measured[p], asked.paper.get(p)) for p in (*PROTOCOLS, HIDDEN)},
            }
        )
    return {
        "grid": dataclasses.asdict(grid),
        "teacher": {protocol: percent(teacher, protocol) for protocol in PROTOCOLS},
        "arms": arms,
        "effects": effects,
        "rankings": {protocol: _ranking(scores, protocol) for protocol in PROTOCOLS},
    }


def _task_mean(runs: Iterable[Scores], task: str, protocol: str) -> float:
    return float(np.mean([percent({task: run[task]}, protocol) for run in runs]))


def _ranking(scores: Mapping[str, Sequence[Scores]], protocol: str) -> list[str]:
    """Arms by mean score, best first."""
    return sorted(scores, key=lambda arm: -float(np.mean([percent(run, protocol) for run in scores[arm]])))


def render(found: Mapping[str, Any]) -> list[Table]:
    """The arms with both ranks, and the effects."""
    ranks = {protocol: {arm: n for n, arm in enumerate(order, 1)} for protocol, order in found["rankings"].items()}
    arms = Table(
        title=f"{found['grid']['name']}: percent of items, mean of {len(found['grid']['seeds'])} training seeds"
    )
    for column in ("arm", "log-likelihood", "rank", "generation", "rank"):
        arms.add_column(column, justify="left" if column == "arm" else "right")
    for name in found["rankings"][GENERATION]:
        cells = []
        for protocol in PROTOCOLS:
            cells += [f"{np.mean(found['arms'][name]['percent'][protocol]):.1f}", str(ranks[protocol][name])]
        arms.add_row(name, *cells)
    effects = Table(title="effects in points, 95 % over items and training seeds")
    for column in ("effect", "log-likelihood", "generation", "hidden by log-likelihood"):
        effects.add_column(column)
    for entry in found["effects"]:
        effects.add_row(entry["name"], *(_cell(entry, name) for name in (*PROTOCOLS, HIDDEN)))
    return [arms, effects] if found["effects"] else [arms]


def markdown(found: Mapping[str, Any]) -> str:
    """The summary as Markdown tables."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = (resources.files("distill.pages") / "ablation.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(**found).strip() + "\n"


def _cell(entry: Mapping[str, Any], protocol: str) -> str:
    found = entry["found"][protocol]
    return f"{found['pp']:+.1f} [{found['low_pp']:+.1f}, {found['high_pp']:+.1f}] {entry['verdict'][protocol]}"
