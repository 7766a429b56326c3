"""Grids: what arms share, how seeds shift, and what the summary says of scores made by hand and of a real toy grid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from distill.ablate import run_grid
from distill.pages.ablation import Ablation, effects_between, markdown, render, summary
from distill.recipe.grids import Arm, Claim, Grid, arm_recipe, load_grid
from perplexity_lies.checked import checked
from perplexity_lies.errors import UsageError
from perplexity_lies.in_the_loop import measurer
from perplexity_lies.read.scores import RungScores, Scores

FINDINGS = Path(__file__).parents[2] / "docs" / "findings"


def scores(loglikelihood: list[int], generation: list[int]) -> Scores:
    """One task's scores, item by item."""
    by_rung = {"loglikelihood": loglikelihood, "generation": generation}
    return Scores(
        tasks={
            "sums": {
                rung: RungScores(items={str(i): float(value) for i, value in enumerate(values)})
                for rung, values in by_rung.items()
            }
        }
    )


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
    found = effects_between(of, against)
    assert found["loglikelihood"].by_seed_pp == pytest.approx((25, 25))
    assert found["generation"].by_seed_pp == pytest.approx((50, 25))
    assert found["hidden"].by_seed_pp == pytest.approx((25, 0))


def test_items_that_one_side_lacks_are_left_out() -> None:
    short = scores([1, 1, 0], [1, 1, 1])
    found = effects_between([scores([1, 1, 0, 1], [1, 1, 1, 0])], [short])
    assert found["generation"].items == 3 and found["generation"].pp == 0


def test_the_summary_names_what_is_shown_reversed_and_not_shown() -> None:
    rng = np.random.default_rng(0)

    def runs(ll: float, gen: float) -> list[Scores]:
        return [scores(list(rng.random(300) < ll), list(rng.random(300) < gen)) for _ in range(3)]

    grid = Grid(
        name="g", recipe="miniature", arms={"a": Arm(), "b": Arm()},
        effects=(Claim(name="a - b", of="a", against="b", paper={"loglikelihood": 1.0, "generation": 1.0}),
                 Claim(name="b - a", of="b", against="a", paper={"generation": 1.0})),
    )  # fmt: skip
    found = summary(grid, {"a": runs(0.8, 0.9), "b": runs(0.8, 0.3)}, scores([1] * 300, [1] * 300))
    assert found.effects[0].verdict["generation"] == "shown"
    assert found.effects[0].verdict["loglikelihood"] == "not shown"
    assert found.effects[1].verdict == {"generation": "reversed", "hidden": "below zero",
                                              "loglikelihood": "not distinguished from zero"}  # fmt: skip
    assert found.rankings["generation"] == ("a", "b")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in render(found):
        console.print(table)
    assert "reversed" in console.export_text()
    assert checked(Ablation, json.loads(json.dumps(dataclasses.asdict(found))), "ablation.json") == found


def test_the_committed_findings_are_read_and_give_the_tables_of_their_page() -> None:
    raw = json.loads((FINDINGS / "miniature.json").read_text())
    found = checked(Ablation, {key: raw[key] for key in ("grid", "teacher", "arms", "effects", "rankings")}, "findings")
    page = (FINDINGS / "miniature.md").read_text().splitlines()
    rows = [line for line in markdown(found).splitlines() if line.startswith("|")]
    assert len(rows) == 40 and set(rows) <= set(page)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("arms: {a: {sett: []}}", "unknown key 'sett', did you mean 'set'"),
        ("arms: {}", "arms should have at least 1 item"),
        ("arms: {a: {}}\nseeds: 3", "seeds should be a list"),
        ("arms: {a: {}}\nseeds: []", "seeds should have at least 1 item"),
        ("arms: {a: {}}\nseeds: [1, 1]", "seeds are different"),
        ("arms: {a: 3}", "arms.a should be a mapping"),
        ("arms: {a: {set: 3}}", "arms.a.set should be a list"),
        ("arms: {a: {set: [student.keep=-1]}}", "student.keep should be greater than or equal to 0"),
        ("arms: {a: {}}\neffects: [{name: x, of: a, against: a, paper: {generatoin: 1}}]", "did you mean 'generation'"),
        ("arms: {alpha: {}}\neffects: [{name: x, of: alpa, against: alpha}]", "which the grid lacks, did you mean 'alpha'"),
        ("armz: {}", "unknown key 'armz', did you mean 'arms'"),
    ],
)  # fmt: skip
def test_a_damaged_grid_is_refused(damage: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(f"name: g\nrecipe: miniature\n{damage}\n")
    with pytest.raises(UsageError, match=message) as caught:
        load_grid(str(path))
    assert caught.value.found and caught.value.mend


def test_a_seed_that_the_grid_lacks_is_refused(tmp_path: Path) -> None:
    grid = Grid(name="g", recipe="miniature", arms={"a": Arm()}, seeds=(0, 1))
    with pytest.raises(UsageError, match="no seed 77"):
        run_grid(
            grid, tmp_path, device="cpu", measure=lambda path: scores([], []), seeds=[77], console=Console(quiet=True)
        )


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("student.mixer=mamba", "student.mixer: unknown name 'mamba', did you mean 'mamba2'"),
        ("student.selector=greedy", "student.selector: unknown name 'greedy', did you mean 'greedy_kl'"),
        ("select_by=kl", "a grid measures the last weights"),
    ],
)
def test_what_an_arm_names_and_nobody_has_is_refused_before_training(
    overlay: str, message: str, tmp_path: Path
) -> None:
    grid = Grid(name="g", recipe="miniature", arms={"a": Arm(), "b": Arm(set=(overlay,))})
    with pytest.raises(UsageError, match=message):
        run_grid(grid, tmp_path, device="cpu", measure=lambda path: scores([], []), console=Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_grid_shares_its_stages_and_continues(toy: list[str], tmp_path: Path) -> None:
    arms = {"kd": Arm(), "sft": Arm(set=("stage3b.objective=sft",)), "mamba2": Arm(set=("student.mixer=mamba2",))}
    grid = Grid(
        name="toy", recipe="miniature", teacher="builtin:teacher", seeds=(0, 1), set=tuple(toy), arms=arms,
        effects=(Claim(name="kd - sft", of="kd", against="sft"),),
    )  # fmt: skip
    measure = measurer(suite="miniature", out=tmp_path / "measured", limit=2)
    asked = {"device": "cpu", "measure": measure, "console": Console(quiet=True)}
    assert run_grid(grid, tmp_path, seeds=[1], **asked) is None
    found = run_grid(grid, tmp_path, **asked)
    assert found is not None and checked(Ablation, json.loads((tmp_path / "ablation.json").read_text()), "it") == found
    per_seed = {"align-qk": 1, "align-mixer": 1, "distil": 2, "instruct": 3}
    for stage, count in per_seed.items():
        assert len(list((tmp_path / "stages").glob(f"{stage}-*"))) == 2 * count
    assert len(list((tmp_path / "stages").glob("selection-*"))) == 2 * 2, "a selection for each mixer"
    trained = [*(tmp_path / "stages").rglob("*"), *(tmp_path / "arms").rglob("*")]
    states = {path: path.stat().st_mtime_ns for path in trained if path.is_file()}
    assert run_grid(grid, tmp_path, **asked) == found
    assert states == {path: path.stat().st_mtime_ns for path in states}
