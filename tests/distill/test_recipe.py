"""Recipes: the bundled one is sound, and what is wrong in a file is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.recipe import KINDS, load_recipe, parse_recipe
from perplexity_lies.errors import MissingError, UsageError
from suites.miniature.catalogue import TASKS
from suites.miniature.stream import PLAIN


@pytest.fixture
def raw() -> dict[str, Any]:
    """The bundled recipe as plain values, to damage."""
    loaded: dict[str, Any] = yaml.safe_load(Path("distill/recipes/miniature.yaml").read_text())
    return loaded


@pytest.fixture(autouse=True)
def repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_the_bundled_recipe_is_sound(raw: dict[str, Any]) -> None:
    recipe = load_recipe("miniature")
    assert [stage.kind for stage in recipe.stages] == sorted((s.kind for s in recipe.stages), key=KINDS.index)
    for mixture in recipe.streams.values():
        assert set(mixture.chat) <= set(TASKS) and set(mixture.plain) <= set(PLAIN)
    assert (
        parse_recipe(yaml.safe_dump(recipe.to_dict(), default_flow_style=False).replace("!!python/tuple", ""), "x")
        == recipe
    )
    assert recipe.student.keep < recipe.teacher.layers


def test_streams_of_teacher_and_student_differ() -> None:
    seeds = [(stage.stream, stage.stream_seed) for stage in load_recipe("miniature").stages]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r["teacher"].update(layer=3), "unknown key 'layer', did you mean 'layers'"),
        (lambda r: r["teacher"].pop("heads"), "teacher lacks: heads"),
        (lambda r: r.update(sed=1), "unknown key 'sed', did you mean 'seed'"),
        (lambda r: r.pop("rows"), "lacks: rows"),
        (lambda r: r["stages"][0].update(kind="4"), "kind must be one of pretrain, 1, 2, 3a, 3b"),
        (lambda r: r["stages"][0].update(stream="al"), "reads stream 'al', which the recipe does not have"),
        (lambda r: r["stages"][0].update(steps=0), "steps and save_every must be at least 1"),
        (lambda r: r["stages"][0].update(warmup=0.8), "together at most 1"),
        (lambda r: r["stages"][0].update(prompt_weight=2), r"prompt_weight must lie in \[0, 1\]"),
        (lambda r: r["stages"].reverse(), "in this order"),
        (lambda r: r["stages"].pop(), "each at least once"),
        (lambda r: r.update(student=3), "student must be a mapping"),
        (lambda r: r["streams"].update(all=[1]), "streams.all must be a mapping"),
    ],
)
def test_a_damaged_recipe_is_refused(raw: dict[str, Any], damage: Any, message: str) -> None:
    damage(raw)
    with pytest.raises(UsageError, match=message):
        parse_recipe(yaml.safe_dump(raw), "recipe.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "just words"])
def test_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="recipe.yaml"):
        parse_recipe(text, "recipe.yaml")


def test_an_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(MissingError, match="no recipe 'minature', did you mean 'miniature'") as caught:
        load_recipe("minature")
    assert "bundled recipes: miniature" in str(caught.value)
