"""The pipeline end to end at toy budgets: checkpoints, cards, continuation; and the committed pair itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from distill.cards import count_parameters
from distill.export import load_exported
from distill.measure import measure_task
from distill.pipeline import Workshop, run_recipe
from distill.recipe import Recipe, load_recipe
from distill.train import STATE_FILE
from perplexity_lies.errors import UsageError
from suites.miniature.catalogue import TASKS, all_items

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "perplexity_lies" / "embedded"


def toy_recipe() -> Recipe:
    """The bundled recipe with two layers, two steps a stage."""
    recipe = load_recipe("miniature")
    teacher = dataclasses.replace(recipe.teacher, layers=2, hidden_size=32, intermediate_size=48, head_dim=8)
    stages = tuple(dataclasses.replace(stage, steps=2) for stage in recipe.stages)
    student = dataclasses.replace(recipe.student, selection_batches=1)
    return dataclasses.replace(recipe, name="toy", rows=2, teacher=teacher, student=student, stages=stages)


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures on three items of each task: the pipeline's own code, less to do."""
    full = Workshop.__init__

    def short(self: Workshop, recipe: Recipe, directory: Path) -> None:
        full(self, recipe, directory)
        self.items = {task: items[:3] for task, items in self.items.items()}

    monkeypatch.setattr(Workshop, "__init__", short)


def test_a_recipe_makes_both_checkpoints_and_continues(few_items: None, tmp_path: Path) -> None:
    recipe = toy_recipe()
    scores = run_recipe(recipe, tmp_path)
    assert set(scores) == {"teacher", "student"} and set(scores["student"]) == set(TASKS)
    teacher, _ = load_exported(tmp_path / "teacher")
    student, tokenizer = load_exported(tmp_path / "student")
    assert sorted(student.config.layer_types) == ["full_attention", "kda"]
    assert student(torch.tensor([tokenizer.encode("<user> box a")])).logits.shape[-1] == len(tokenizer)
    card = (tmp_path / "student" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["library_name"]) == ("apache-2.0", "transformers")
    assert f"{count_parameters(tmp_path / 'student'):,} parameters" in card
    assert count_parameters(tmp_path / "teacher") == sum(p.numel() for p in teacher.parameters())
    for task, found in scores["student"].items():
        assert f"| {task} | {found.items} | {found.loglikelihood:.1f} |" in card

    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("teacher", "student")}
    last = tmp_path / "stages" / recipe.stages[-1].name / STATE_FILE
    last.unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").glob(f"*/{STATE_FILE}")}
    assert run_recipe(recipe, tmp_path) == scores
    assert weights == {name: (tmp_path / name / "model.safetensors").read_bytes() for name in weights}
    assert last.exists() and times == {path: path.stat().st_mtime_ns for path in times}

    with pytest.raises(UsageError, match="another recipe's run"):
        run_recipe(dataclasses.replace(recipe, seed=9), tmp_path)


def test_no_evaluation_question_is_in_any_stage(tmp_path: Path) -> None:
    shop = Workshop(toy_recipe(), tmp_path)
    questions = {tuple(shop.encoder.words(item.question)) for items in all_items().values() for item in items}
    assert len(questions) == sum(settings["items"] for settings in TASKS.values())
    for stage in shop.recipe.stages:
        fetch = shop.fetch(shop.recipe.streams[stage.stream], stage.stream_seed)
        for index in range(1500):
            tokens = fetch(index)
            assert tuple(tokens.ids[1 : tokens.prompt_tokens - 1]) not in questions


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nsed: 1\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for recipe, code, message in ((str(bad), 2, "unknown key 'sed'"), ("nonesuch", 3, "no recipe 'nonesuch'")):
        command = [sys.executable, "-m", "distill", "run", recipe, "--out", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, "")
        assert message in done.stderr and "Traceback" not in done.stderr


def test_the_embedded_pair_is_small_and_whole() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    for name, model_type in (("teacher", "qwen3"), ("student", "plies_hybrid")):
        config = json.loads((EMBEDDED / name / "config.json").read_text())
        assert (config["model_type"], config["dtype"]) == (model_type, "bfloat16")
        assert 500_000 <= count_parameters(EMBEDDED / name) <= 2_000_000
        assert yaml.safe_load((EMBEDDED / name / "README.md").read_text().split("---")[1])["license"] == "apache-2.0"


def test_the_embedded_pair_knows_what_its_card_says() -> None:
    items = {task: questions[:12] for task, questions in all_items().items()}
    for name, least in (("teacher", 90.0), ("student", 30.0)):
        model, tokenizer = load_exported(EMBEDDED / name)
        found = [measure_task(model, tokenizer, items[task], TASKS[task]) for task in TASKS]
        assert sum(s.loglikelihood for s in found) / len(found) >= (95.0 if name == "teacher" else 75.0)
        assert sum(s.generation for s in found) / len(found) >= least
