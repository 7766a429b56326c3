"""Recipes: the bundled ones are sound and say what their papers say, overlays go where they point, faults are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.recipe.files import build_recipe, load_recipe, overlaid, read_recipe
from distill.recipe.settings import GROUPS, KINDS, LAYER_PLANS
from perplexity_lies.errors import MissingError, UsageError
from suites.miniature.catalogue import TASKS
from suites.miniature.stream import PLAIN

BUNDLED = ("gendistill-qwen3-0.6b", "miniature", "radlads")


@pytest.fixture
def raw() -> dict[str, Any]:
    """The miniature recipe as plain values, to damage."""
    return read_recipe("miniature")[0]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_recipes_are_sound_and_survive_being_written(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    kinds = [stage.kind for stage in recipe.stages]
    assert kinds == sorted(kinds, key=KINDS.index)
    assert build_recipe(yaml.safe_load(yaml.safe_dump(recipe.to_dict())), "written") == recipe


def test_the_miniature_recipe_names_tasks_that_exist() -> None:
    recipe = load_recipe("miniature")
    for source in recipe.data.values():
        assert source.mixture is not None
        assert set(source.mixture.chat) <= set(TASKS) and set(source.mixture.plain) <= set(PLAIN)
    assert not isinstance(recipe.teacher, str) and recipe.student.keep == 1 < recipe.teacher.layers


def test_no_two_miniature_stages_read_the_same_documents() -> None:
    seeds = [(stage.data, stage.data_seed) for stage in load_recipe("miniature").stages]
    assert len(set(map(str, seeds))) == len(seeds)


def test_gendistill_is_table_9() -> None:
    recipe = load_recipe("gendistill-qwen3-0.6b")
    assert recipe.teacher == "Qwen/Qwen3-0.6B"
    assert (recipe.student.mixer, recipe.student.keep, recipe.student.init) == ("kda", "beam_add7", "vo")
    columns = [(s.kind, s.steps, s.rows, s.length, s.lr) for s in recipe.stages]
    assert columns == [
        ("1", 915, 16, 2048, 5e-4),
        ("2", 915, 16, 2048, 1e-4),
        ("3a", 3815, 64, 2048, 2.5e-5),
        ("3b", 1907, 64, 4096, 2.5e-5),
    ]
    budgets = [30e6, 30e6, 500e6, 500e6]
    for stage, budget in zip(recipe.stages, budgets, strict=True):
        assert stage.steps * stage.tokens_per_step == pytest.approx(budget, rel=1e-3)
        assert (stage.weight_decay, stage.betas, stage.clip) == (0.1, (0.9, 0.95), 1.0)
        assert (stage.warmup, stage.decay, stage.final, stage.precision) == (0.1, 0.1, 0.02, "bf16")
        assert (stage.alignment, stage.objective, stage.temperature, stage.top_k) == ("l2norm", "kd", 1.0, 0)
        assert stage.rows % stage.micro_rows == 0
    assert [set(GROUPS) - set(s.frozen) for s in recipe.stages] == [
        {"qk"},
        {"qk", "mixer"},
        {"qk", "mixer", "mlp", "norms"},
        {"qk", "mixer", "mlp", "norms"},
    ]
    assert [s.prompt_weight for s in recipe.stages] == [1.0, 1.0, 1.0, 0.0]
    assert all(s.data == {"english": 0.29, "chinese": 0.71} for s in recipe.stages[:3])
    assert recipe.stages[3].data == "instructions" and recipe.data["instructions"].messages
    assert recipe.data["chinese"].data_dir == "4_5"  # a bare 4_5 is the number 45 in YAML


def test_radlads_aligns_whole_mixers_then_trains_everything() -> None:
    recipe = load_recipe("radlads")
    align, match, lengthen = recipe.stages
    assert recipe.student.init == "qkvo" and recipe.student.keep == 0
    assert set(GROUPS) - set(align.frozen) == {"qk", "mixer"}
    assert match.frozen == lengthen.frozen == () and (match.objective, lengthen.objective) == ("kd", "sft")
    assert lengthen.length > match.length == align.length
    assert align.steps == 100_000_000 // (32 * 512)


def test_layer_plans_are_those_of_the_paper() -> None:
    for name, layers in LAYER_PLANS.items():
        assert len(layers) == int(name[-1]) and tuple(sorted(set(layers))) == layers and layers[-1] < 28
    for method in ("greedy", "greedy_kl", "beam_replace"):
        five, seven, nine = (set(LAYER_PLANS[f"{method}{count}"]) for count in (5, 7, 9))
        assert five < seven < nine
    # Beam Add's sets are not nested: 12 and 17 leave. A beam one wide could not do that.
    assert set(LAYER_PLANS["beam_add5"]) - set(LAYER_PLANS["beam_add7"]) == {12, 17}


def overlay(raw: dict[str, Any], *settings: str) -> Any:
    return build_recipe(overlaid(raw, settings), "recipe")


def test_overlays_reach_stages_by_kind_and_by_name(raw: dict[str, Any]) -> None:
    before = build_recipe(raw, "recipe")
    by_kind = overlay(raw, "stage3b.objective=sft", "stage3b.freeze=[]", "seed=3")
    by_name = overlay(raw, "instruct.objective=sft", "instruct.freeze=[]", "seed=3")
    assert by_kind == by_name and by_kind.seed == 3
    assert by_kind.stages[-1].objective == "sft" and by_kind.stages[-1].frozen == ()
    assert by_kind.stages[:-1] == before.stages[:-1]
    assert build_recipe(raw, "recipe") == before, "the values overlaid must stay as they were"


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("student.mixer=mamba2", lambda r: r.student.mixer == "mamba2"),
        ("student.mixer=[kda, gla, kda, gla]", lambda r: r.student.mixer == ("kda", "gla", "kda", "gla")),
        ("student.keep=[0, 3]", lambda r: r.student.keep == (0, 3)),
        ("student.init=qkvo", lambda r: r.student.init == "qkvo"),
        ("stage3a.ce_weight=0.1", lambda r: r.stages[3].ce_weight == 0.1),
        ("stage1=null", lambda r: [s.kind for s in r.stages] == ["pretrain", "2", "3a", "3b"]),
        ("stage3a.tokens=20480", lambda r: r.stages[3].steps == 10),
        ("stage3a.lr=1e-5", lambda r: r.stages[3].lr == 1e-5),  # text by PyYAML's own rule
        ("defaults.rows=8", lambda r: all(s.rows == 8 for s in r.stages)),
        ("data.chat.too_long=drop", lambda r: r.data["chat"].too_long == "drop"),
        ("teacher=Qwen/Qwen3-0.6B", lambda r: r.teacher == "Qwen/Qwen3-0.6B" and r.stages[0].kind == "1"),
    ],
)
def test_an_overlay_does_what_it_says(raw: dict[str, Any], setting: str, read: Any) -> None:
    assert not read(build_recipe(raw, "recipe"))
    assert read(overlay(raw, setting))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stage3b.objective", "--set wants KEY=VALUE"),
        ("seed=[1", "the value is not YAML"),
        ("stage3c.objective=sft", "no 'stage3c', did you mean"),
        ("studnt.init=vo", "no 'studnt', did you mean 'student'"),
        ("stage3b.objectiv=sft", "unknown key 'objectiv', did you mean 'objective'"),
        ("stage3b.objective=dpo", r"stages\[4\].objective should be 'kd' or 'sft'"),
        ("stage3b.freeze=[mpl]", r"stages\[4\].freeze\[0\] should be .*did you mean 'mlp'"),
        ("student.init=qv", "student.init should be 'vo', 'qkvo' or 'random', did you mean 'qkvo'"),
        ("student.keep=beam_ad7", "student.keep: unknown name 'beam_ad7', did you mean 'beam_add7'"),
        ("stage3a.data=opn", "reads data 'opn', which the recipe does not have, did you mean 'open'"),
        ("seed.deep=1", "'seed' is not a mapping"),
        ("stage3a.lr=fast", r"stages\[3\].lr should be a number"),
        ("stage3a.keep_last=1.5", "keep_last should be an integer"),
        ("seed=true", "seed should be an integer"),
        ("student.output_norm=1", "output_norm should be a boolean"),
        ("student.init=3", "init should be 'vo', 'qkvo' or 'random'"),
        ("stage3a.tokens=5", "5 tokens are less than one step of 2048"),
    ],
)
def test_an_overlay_that_leads_nowhere_is_refused(raw: dict[str, Any], setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        overlay(raw, setting)
    assert caught.value.found and caught.value.mend


def test_the_overlays_of_the_guide_apply() -> None:
    rows = (
        (Path(__file__).parents[2] / "docs" / "distill.md").read_text().split("| axis | overlay |")[1].split("\n\n")[0]
    )
    settings = [re.findall(r"`([^`]+)`", row.split("|", 2)[2]) for row in rows.splitlines() if "`" in row]
    plain = load_recipe("gendistill-qwen3-0.6b")
    assert len(settings) >= 12
    for row in settings:
        together = row[0] == "stage3a=null"
        for chosen in [row] if together else [[setting] for setting in row]:
            assert load_recipe("gendistill-qwen3-0.6b", chosen) != plain, chosen


def _add_stage(raw: dict[str, Any], **changes: Any) -> None:
    raw["stages"].append({**raw["stages"][-1], "name": "more", **changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r["teacher"].update(layer=3), "unknown key 'layer', did you mean 'layers'"),
        (lambda r: r["teacher"].pop("heads"), "teacher lacks `heads`"),
        (lambda r: r.update(sed=1), "unknown key 'sed', did you mean 'seed'"),
        (lambda r: r["defaults"].pop("rows"), r"stages\[0\] lacks `rows`"),
        (lambda r: r.update(defaults=[1]), "defaults should be a mapping"),
        (lambda r: r["stages"][0].update(kind="4"), r"stages\[0\].kind should be 'pretrain', '1'"),
        (lambda r: r["stages"][0].update(data="al"), "reads data 'al', which the recipe does not have"),
        (lambda r: r["stages"][0].update(steps=0), "give steps or tokens, one of them, above 0"),
        (lambda r: r["stages"][0].update(tokens=9999), "give steps or tokens, one of them, above 0"),
        (lambda r: r["stages"][0].update(micro_rows=-1), "micro_rows should be greater than or equal to 0"),
        (lambda r: r["stages"][0].update(warmup=0.8), "together at most 1"),
        (lambda r: r["stages"][0].update(prompt_weight=2), "prompt_weight should be less than or equal to 1"),
        (lambda r: r["stages"][0].update(temperature=0), "temperature should be greater than 0"),
        (lambda r: r["stages"].reverse(), "must follow the order"),
        (lambda r: r["stages"].pop(0), "a teacher from scratch needs a stage of kind pretrain"),
        (lambda r: r.update(teacher="builtin:teacher"), "a teacher from scratch needs a stage of kind pretrain"),
        (lambda r: _add_stage(r, kind="3"), "stage 3 combines 3a and 3b"),
        (lambda r: _add_stage(r, name="instruct"), "stages must have different names"),
        (lambda r: r.update(suite="", select_by="generation"), "select_by generation needs a suite"),
        (lambda r: r.update(select_by="best"), "select_by should be 'last', 'generation'"),
        (lambda r: r.update(student=3), "student should be a mapping"),
        (lambda r: r["data"].update(all=[1]), "data.all should be a mapping"),
        (lambda r: r["data"]["all"].update(source="texts.jsonl"), "source miniature, and it alone, has a mixture"),
        (lambda r: r["data"].update(own={"source": "a.jsonl"}), "name the column of text or of messages, one of them"),
        (lambda r: r["data"]["all"].update(too_long="wrap"), "too_long should be 'split', 'cut' or 'drop'"),
    ],
)
def test_a_damaged_recipe_is_refused(raw: dict[str, Any], damage: Any, message: str) -> None:
    damage(raw)
    with pytest.raises(UsageError, match=message) as caught:
        build_recipe(raw, "recipe.yaml")
    assert caught.value.asked.startswith("recipe.yaml") and caught.value.found and caught.value.mend


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("stage1.betas=5", "stages[1].betas should be a list"),
        ("stage1.betas=[a, b]", "stages[1].betas[0] should be a number"),
        ("stage1.betas=[0.9, 1.0]", "stages[1].betas[1] should be less than 1"),
        ("stage1.betas=[-0.1, 0.9]", "stages[1].betas[0] should be greater than or equal to 0"),
        ("stage1.betas=[0.9]", "stages[1].betas"),
        ("stage1.data=[all]", "stages[1].data should be a string or a mapping"),
        ("stage1.data={all: 0}", "stages[1].data.all should be greater than 0"),
        ("stage1.data={all: 1, open: -1}", "stages[1].data.open should be greater than 0"),
        ("stage1.data={}", "stages[1].data should"),
        ("data.all.at_least={score: high}", "data.all.at_least.score should be a number"),
        ("stage1.lr=.nan", "stages[1].lr should be a finite number"),
        ("stage1.lr=-1", "stages[1].lr should be greater than or equal to 0"),
        ("stage1.steps=-3", "stages[1].steps should be greater than or equal to 0"),
        ("stage1.rows=true", "stages[1].rows should be an integer"),
        ("stages=5", "stages should be a list"),
        ("stages=[5]", "stages[0] should be a mapping"),
        ("data.all.at_least=3", "data.all.at_least should be a mapping"),
        ("data.all.mixture.plain_share=2", "data.all.mixture.plain_share should be less than or equal to 1"),
        ("data.all.mixture.chat={fact: 1}", "mixture.chat: unknown name 'fact', did you mean 'facts'?"),
        ("data.chat.mixture.chat={}", "mixture.chat has no weight"),
        ("student.keep=[0.5]", "student.keep[0] should be an integer"),
        ("student.keep={}", "student.keep should be an integer or a list or a string"),
        ("student.keep=-1", "student.keep should be greater than or equal to 0"),
        ("student.keep=true", "student.keep should be"),
        ("student.mixer=5", "student.mixer should be a string or a list"),
        ("student.chunk_size=0", "student.chunk_size should be greater than or equal to 1"),
        ("teacher.layers=0", "teacher.layers should be greater than or equal to 1"),
        ("seed=2020-01-01", "a date (2020-01-01): put it in quotes"),
    ],
)
def test_a_value_out_of_place_is_refused_with_its_path(raw: dict[str, Any], setting: str, place: str) -> None:
    with pytest.raises(UsageError, match=re.escape(place)) as caught:
        overlay(raw, setting)
    assert caught.value.asked.startswith("recipe") and caught.value.found and caught.value.mend


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nseed: 1\nname: b\n")
    with pytest.raises(UsageError, match="recipe.yaml is not YAML") as caught:
        load_recipe(str(path))
    assert "'name' stands twice" in caught.value.found[0]


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "just words"])
def test_text_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="recipe.yaml"):
        load_recipe(str(path))


def test_an_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(MissingError, match="no recipe 'minature', did you mean 'miniature'") as caught:
        load_recipe("minature")
    assert f"bundled recipes: {', '.join(BUNDLED)}" in str(caught.value)
