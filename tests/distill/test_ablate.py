"""Grids: what arms share, how seeds shift, and what the summary says of scores made by hand and of a real toy grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from distill.ablate import Arm, Contrast, Grid, arm_recipe, contrast, load_grid, render, run_grid, summary
from perplexity_lies.errors import UsageError
from perplexity_lies.in_the_loop import measurer


def scores(loglikelihood: list[int], generation: list[int]) -> dict[str, Any]:
    """One task's scores, item by item."""
    asked = {"loglikelihood": loglikelihood, "generation": generation}
    return {
        "sums": {p: {"items": {str(i): float(v) for i, v in enumerate(vs)}, "statuses": {}} for p, vs in asked.items()}
    }


def test_the_bundled_grid_is_sound_and_its_arms_differ_in_one_thing() -> None:
    grid = load_grid("miniature-findings")
    assert len(grid.seeds) >= 3
    base = arm_recipe(grid, Arm(), 0)
    for arm in grid.arms.values():
        recipe = arm_recipe(grid, arm, 0)
        assert (recipe == base) == (not arm.set)
    shifted = arm_recipe(grid, Arm(), 2)
    assert shifted.seed == base.seed + 2 and shifted.teacher == base.teacher == "builtin:teacher"
    seeds = {stage.data_seed for seed in grid.seeds for stage in arm_recipe(grid, Arm(), seed).stages}
    assert len(seeds) == len(grid.seeds) * len(base.stages)


def test_effects_are_paired_by_seed_and_item() -> None:
    of = [scores([1, 1, 0, 1], [1, 1, 1, 0]), scores([1, 1, 1, 1], [1, 0, 1, 0])]
    against = [scores([1, 0, 0, 1], [0, 0, 1, 0]), scores([1, 1, 1, 0], [0, 0, 1, 0])]
    found = contrast(of, against)
    assert found["loglikelihood"].by_seed_pp == pytest.approx((25, 25))
    assert found["generation"].by_seed_pp == pytest.approx((50, 25))
    assert found["hidden"].by_seed_pp == pytest.approx((25, 0))


def test_items_that_one_side_lacks_are_left_out() -> None:
    short = scores([1, 1, 0], [1, 1, 1])
    found = contrast([scores([1, 1, 0, 1], [1, 1, 1, 0])], [short])
    assert found["generation"].items == 3 and found["generation"].pp == 0


def test_the_summary_names_what_is_shown_reversed_and_not_shown() -> None:
    rng = np.random.default_rng(0)

    def runs(ll: float, gen: float) -> list[dict[str, Any]]:
        return [scores(list(rng.random(300) < ll), list(rng.random(300) < gen)) for _ in range(3)]

    grid = Grid(
        name="g", recipe="miniature", arms={"a": Arm(), "b": Arm()},
        effects=(Contrast(name="a - b", of="a", against="b", paper={"loglikelihood": 1.0, "generation": 1.0}),
                 Contrast(name="b - a", of="b", against="a", paper={"generation": 1.0})),
    )  # fmt: skip
    found = summary(grid, {"a": runs(0.8, 0.9), "b": runs(0.8, 0.3)}, scores([1] * 300, [1] * 300))
    assert found["effects"][0]["verdict"]["generation"] == "shown"
    assert found["effects"][0]["verdict"]["loglikelihood"] == "not shown"
    assert found["effects"][1]["verdict"] == {"generation": "reversed", "hidden": "below zero",
                                              "loglikelihood": "not distinguished from zero"}  # fmt: skip
    assert found["rankings"]["generation"] == ["a", "b"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in render(found):
        console.print(table)
    assert "reversed" in console.export_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("arms: {a: {sett: []}}", "unknown key 'sett', did you mean 'set'"),
        ("arms: {}", "at least one arm"),
        ("arms: {alpha: {}}\neffects: [{name: x, of: alpa, against: alpha}]", "which the grid lacks, did you mean 'alpha'"),
        ("armz: {}", "unknown key 'armz', did you mean 'arms'"),
    ],
)  # fmt: skip
def test_a_damaged_grid_is_refused(damage: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(f"name: g\nrecipe: miniature\n{damage}\n")
    with pytest.raises(UsageError, match=message):
        load_grid(str(path))


@pytest.mark.slow
def test_a_grid_shares_its_stages_and_continues(toy: list[str], tmp_path: Path) -> None:
    arms = {"kd": Arm(), "sft": Arm(set=("stage3b.objective=sft",)), "mamba2": Arm(set=("student.mixer=mamba2",))}
    grid = Grid(
        name="toy", recipe="miniature", teacher="builtin:teacher", seeds=(0, 1), set=tuple(toy), arms=arms,
        effects=(Contrast(name="kd - sft", of="kd", against="sft"),),
    )  # fmt: skip
    measure = measurer(suite="miniature", out=tmp_path / "measured", limit=2)
    asked = {"device": "cpu", "measure": measure, "console": Console(quiet=True)}
    assert run_grid(grid, tmp_path, seeds=[1], **asked) is None
    found = run_grid(grid, tmp_path, **asked)
    assert found is not None and json.loads((tmp_path / "ablation.json").read_text())["rankings"] == found["rankings"]
    per_seed = {"align-qk": 1, "align-mixer": 1, "distil": 2, "instruct": 3}
    for stage, count in per_seed.items():
        assert len(list((tmp_path / "stages").glob(f"{stage}-*"))) == 2 * count
    assert len(list((tmp_path / "stages").glob("selection-*"))) == 2 * 2, "a selection for each mixer"
    trained = [*(tmp_path / "stages").rglob("*"), *(tmp_path / "arms").rglob("*")]
    states = {path: path.stat().st_mtime_ns for path in trained if path.is_file()}
    assert run_grid(grid, tmp_path, **asked) == found
    assert states == {path: path.stat().st_mtime_ns for path in states}
