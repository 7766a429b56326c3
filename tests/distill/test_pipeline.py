"""The pipeline end to end at toy budgets: checkpoints, cards, report, continuation; and the committed pair itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distill.cli import app
from distill.curve import Point, best_point
from distill.export import load_exported
from distill.pages.cards import count_parameters
from distill.pipeline import keep_recipe, run_recipe
from distill.recipe.files import build_recipe, load_recipe, overlaid, read_recipe
from distill.recipe.settings import Recipe
from distill.selection import SELECTORS
from distill.training.train import TrainingError
from distill.workshop import Workshop
from perplexity_lies.checked import checked
from perplexity_lies.errors import PliesError, UsageError
from perplexity_lies.in_the_loop import measurer
from perplexity_lies.read.scores import Scores
from suites.miniature.catalogue import TASKS, all_items

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "perplexity_lies" / "embedded"
TOY_TEACHER = [
    "teacher.layers=2", "teacher.hidden_size=32", "teacher.intermediate_size=48", "teacher.head_dim=8", "stagepretrain.steps=2"
]  # fmt: skip
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe_of(toy: list[str]) -> MakeRecipe:
    """`recipe_of(*settings)` -> the bundled recipe at toy budgets, with a student of the embedded teacher."""
    raw, where = read_recipe("miniature")

    def make(*settings: str) -> Recipe:
        return build_recipe(overlaid(raw, [*toy, "teacher=builtin:teacher", *settings]), where)

    return make


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_recipe_makes_both_checkpoints_and_continues(toy: list[str], tmp_path: Path) -> None:
    raw, where = read_recipe("miniature")
    recipe = build_recipe(overlaid(raw, [*toy, *TOY_TEACHER]), where)
    measure = measurer(suite="miniature", out=tmp_path / "measured", limit=2)
    scores = run_recipe(recipe, tmp_path, measure=measure)
    assert set(scores) == {"teacher", "student"} and set(scores["student"].tasks) == set(TASKS)
    teacher, _ = load_exported(tmp_path / "teacher")
    student, tokenizer = load_exported(tmp_path / "student")
    assert sorted(student.config.layer_types) == ["full_attention", "kda"]
    assert student(torch.tensor([tokenizer.encode("<user> box a")])).logits.shape[-1] == len(tokenizer)
    card = (tmp_path / "student" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["library_name"]) == ("apache-2.0", "transformers")
    assert f"{count_parameters(tmp_path / 'student'):,} parameters" in card
    assert count_parameters(tmp_path / "teacher") == sum(p.numel() for p in teacher.parameters())
    report = (tmp_path / "report.html").read_text()
    assert "Gaps against tokens" in report and report.count("<td>distil</td>") == 2

    kept = {name: weights(tmp_path / name) for name in ("teacher", "student")}
    last = next((tmp_path / "stages").glob("instruct-*"))
    shutil.rmtree(last)
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.pt")}
    assert run_recipe(recipe, tmp_path, measure=measure) == scores
    assert kept == {name: weights(tmp_path / name) for name in kept}
    assert last.exists() and others == {path: path.stat().st_mtime_ns for path in others}

    keep_recipe(dataclasses.replace(recipe, history="told otherwise"), tmp_path)
    assert "told otherwise" in (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match="another recipe's run") as refused:
        run_recipe(dataclasses.replace(recipe, seed=9), tmp_path)
    assert refused.value.found[0].endswith("in: seed")


def test_a_student_of_a_checkpoint_keeps_what_it_is_told_to(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """No pretraining, layers named, another mixer, no measuring; nothing but the student is written."""
    recipe = recipe_of("student.keep=[1, 3]", "student.mixer=mamba2", "suite=")
    assert run_recipe(recipe, tmp_path) == {}
    student, _ = load_exported(tmp_path / "student")
    assert student.config.layer_types == ["mamba2", "full_attention", "mamba2", "full_attention"]
    assert not (tmp_path / "teacher").exists()
    teacher, _ = load_exported(EMBEDDED / "teacher")
    assert torch.equal(student.model.layers[1].self_attn.q_proj.weight, teacher.model.layers[1].self_attn.q_proj.weight)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("student.keep=[1, 4]", r"student.keep=\(1, 4\)"),
        ("student.keep=5", "5"),
        ("student.keep=beam_add7", "beam_add7"),
    ],
)
def test_layers_that_the_teacher_lacks_are_refused(
    recipe_of: MakeRecipe, setting: str, message: str, tmp_path: Path
) -> None:
    recipe = recipe_of(setting, "stage1=null", "stage2=null", "suite=")
    with pytest.raises(UsageError, match=f"{message} asks for layers that the teacher lacks"):
        run_recipe(recipe, tmp_path)


def test_several_mixers_are_aligned_together_as_each_alone(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_of("suite=")
    found = {}
    for name, mixers in (("both", ["kda", "mamba2"]), ("kda", ["kda"]), ("mamba2", ["mamba2"])):
        shop = Workshop(tmp_path / name)
        found[name] = shop.align(recipe, shop.teacher(recipe), mixers).students
    for mixer in ("kda", "mamba2"):
        alone = found[mixer][mixer].state_dict()
        for parameter, value in found["both"][mixer].state_dict().items():
            torch.testing.assert_close(value, alone[parameter], rtol=1e-6, atol=1e-7)


def test_a_stage_refuses_a_model_that_the_last_one_did_not_leave(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_of("suite=")
    shop = Workshop(tmp_path)
    teacher = shop.teacher(recipe)
    real = Workshop.run_stage

    def forgetful(self: Workshop, *args: Any, **kwargs: Any) -> Any:
        """A loader that gives back the weights of before the stage."""
        model = args[4]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        outcome = real(self, *args, **kwargs)
        model.load_state_dict(before)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workshop, "run_stage", forgetful)
        with pytest.raises(TrainingError, match="last stage"):
            shop.align(recipe, teacher, ["kda"])


def test_a_run_that_goes_on_with_other_weights_stops(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """What a stage closed with is on the disk: weights that are not its own are found after a kill, too."""
    recipe = recipe_of("suite=")
    run_recipe(recipe, tmp_path)
    (state,) = next((tmp_path / "stages").glob("distil-*")).glob("*.pt")
    saved = torch.load(state, weights_only=True)
    name = next(name for name in saved["model"] if name.endswith("mlp.up_proj.weight"))
    saved["model"][name] *= 0.5
    torch.save(saved, state)
    with pytest.raises(TrainingError, match="not the one that the last stage left"):
        run_recipe(recipe, tmp_path)


def test_the_student_is_the_one_that_selection_scored(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_of("suite=", "student.keep=1")
    run_recipe(recipe, tmp_path)
    (path,) = (tmp_path / "stages").glob("selection-*.json")
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "kl_nats": 2 * kept["kl_nats"]}))
    with pytest.raises(TrainingError, match="not the one that the last stage left"):
        run_recipe(recipe, tmp_path)


def test_each_selector_keeps_its_own_choice(
    recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SELECTORS, "other", SELECTORS["greedy_kl"])
    shop, settings = Workshop(tmp_path), ("suite=", "stage1=null", "stage2=null")
    counts = []
    for chosen in ("student.selector=greedy_kl", "student.selector=other", "student.selector=greedy_kl"):
        recipe = recipe_of(*settings, chosen)
        teacher = shop.teacher(recipe)
        shop.select(recipe, teacher, shop.align(recipe, teacher, ["kda"]))
        counts.append(len(list((tmp_path / "stages").glob("selection-*.json"))))
    assert counts == [1, 2, 2]


def test_measuring_takes_no_more_rows_at_a_time_than_training(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    whole, parts = recipe_of("suite="), recipe_of("suite=", "stage3b.micro_rows=1")
    shop = Workshop(tmp_path)
    teacher = shop.teacher(whole)
    batches = shop.held_batches(parts, teacher)
    assert {len(batch.input_ids) for batch in batches} == {1}
    assert len(batches) == sum(len(batch.input_ids) for batch in shop.held_batches(whole, teacher)) > 1
    student = shop.align(whole, teacher, ["kda"]).students["kda"]
    assert shop.kl(parts, teacher, student) == pytest.approx(shop.kl(whole, teacher, student), rel=1e-5)


def test_to_keep_no_layer_nothing_is_scored(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    recipe, shop = recipe_of("suite=", "student.keep=0"), Workshop(tmp_path)
    teacher = shop.teacher(recipe)
    aligned = shop.align(recipe, teacher, ["kda"])
    selection = shop.select(recipe, teacher, aligned)
    assert (selection.kept, selection.scored) == ((), ())


@pytest.mark.parametrize("eos", [None, "<|end|>"])
def test_a_tokenizer_without_a_pad_token_will_do(recipe_of: MakeRecipe, tmp_path: Path, eos: str | None) -> None:
    recipe, shop = recipe_of("suite="), Workshop(tmp_path)
    tokenizer = shop.teacher(recipe).tokenizer
    padded = shop.stream(recipe, recipe.stages[-1], tokenizer).batch(0)
    tokenizer.pad_token, tokenizer.eos_token = None, eos
    bare = shop.stream(recipe, recipe.stages[-1], tokenizer).batch(0)
    assert torch.equal(padded.weights, bare.weights) and torch.equal(padded.position_ids, bare.position_ids)
    assert torch.equal(padded.input_ids[padded.weights > 0], bare.input_ids[bare.weights > 0])


def test_the_best_point_is_the_later_of_equals() -> None:
    def point(step: int, kl: float, generation: float) -> Point:
        return Point(stage="s", step=step, tokens=step, kl=kl, scores={"generation": generation}, checkpoint="")

    points = [point(1, 0.5, 60.0), point(2, 0.2, 60.0), point(3, 0.3, 50.0)]
    assert best_point(points, "kl").step == 2 and best_point(points, "generation").step == 2


@pytest.mark.slow
def test_the_best_by_generation_is_what_is_exported(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_of("select_by=generation", "stage3b.measure_every=1")
    run_recipe(recipe, tmp_path, measure=measurer(suite="miniature", out=tmp_path / "measured", limit=2))
    points = [json.loads(path.read_text()) for path in (tmp_path / "stages").glob("point-*.json")]
    assert len(points) == 4  # aligned, after 3a, after each of two steps of 3b
    best = max(point["scores"]["generation"] for point in points)
    chosen = [p for p in points if weights(tmp_path / p["checkpoint"]) == weights(tmp_path / "student")]
    assert chosen and chosen[0]["scores"]["generation"] == best
    student = json.loads((tmp_path / "scores.json").read_text())["student"]
    assert checked(Scores, student, "scores.json").percent("generation") == best


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nonesuch"], 3, "no recipe 'nonesuch'"),
        (["run", "miniature", "--set", "stage3c.lr=1"], 2, "no 'stage3c'"),
        (["run", "miniature", "--set", "student.mixer=mamba"], 2, "did you mean 'mamba2'"),
        (["run", "miniature", "--report-to", "tensorbord"], 2, "did you mean 'tensorboard'"),
        (["run", "miniature", "--teacher", "nowhere", "--set", "suite="], 3, "nowhere"),
        (["run", "miniature", "--device", "gpu"], 2, "'gpu' is not a device"),
        (["run", "miniature", "--device", "cuda:99"], 3, "--device cuda:99 was asked for"),
        (["ablate", "nonesuch"], 3, "bundled grids: miniature-findings"),
    ],
)
def test_a_command_refuses_before_it_trains(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(PliesError) as caught:
        app([*arguments, "--out", str(tmp_path / "out")], standalone_mode=False, obj=measurer)
    assert message in str(caught.value) and caught.value.exit_code == code
    assert not list(tmp_path.rglob("*.pt"))


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nsed: 1\n")
    command = [sys.executable, "-m", "perplexity_lies.cli", "distill", "run", str(bad), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "unknown key 'sed'" in done.stderr and "Traceback" not in done.stderr


def test_the_embedded_pair_is_small_and_whole() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    for name, model_type in (("teacher", "qwen3"), ("student", "plies_hybrid")):
        config = json.loads((EMBEDDED / name / "config.json").read_text())
        assert (config["model_type"], config["dtype"]) == (model_type, "bfloat16")
        assert 500_000 <= count_parameters(EMBEDDED / name) <= 2_000_000
        assert yaml.safe_load((EMBEDDED / name / "README.md").read_text().split("---")[1])["license"] == "apache-2.0"


@pytest.mark.slow
def test_the_embedded_student_is_what_the_recipe_makes(tmp_path: Path) -> None:
    """Stage 1, whole, from the embedded teacher: ends on the loss that the student's card tells."""
    recipe = load_recipe("miniature", ["teacher=builtin:teacher", "stage2=null"])
    shop = Workshop(tmp_path)
    shop.align(recipe, shop.teacher(recipe), ["kda"])
    row = next(
        line
        for line in (EMBEDDED / "student" / "README.md").read_text().splitlines()
        if line.startswith("| align-qk |")
    )
    told = float(row.strip("| ").rpartition("| ")[2])
    assert shop.tallies["align-qk"].loss == pytest.approx(told, rel=2e-3)


def test_no_evaluation_question_is_in_any_stage(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    assert (
        len(shop.held_out)
        == sum(settings["items"] for settings in TASKS.values())
        == sum(map(len, all_items().values()))
    )
