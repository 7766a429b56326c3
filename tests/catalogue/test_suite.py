"""Suites: the shipped load, broken ones say what is wrong and what to write, a digest moves with what is asked."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.sources import FileItems
from perplexity_lies.catalogue.suite import catalogue, load_suite
from perplexity_lies.errors import UsageError
from perplexity_lies.protocols.generation import Generation
from perplexity_lies.protocols.loglikelihood import Loglikelihood
from perplexity_lies.rungs import RUNGS

ITEM: dict[str, Any] = {"id": "a1", "question": "1 + 1 = ?", "choices": ["2", "3"], "gold": 0, "target": "2"}
TASK: dict[str, Any] = {"name": "sums", "items": "items.jsonl", "extract": r"(\d+)", "max_new_tokens": 8}
STOCK: dict[str, Any] = {
    "name": "arc",
    "loglikelihood": {"lm_eval": "arc/arc_easy.yaml", "dataset": "o/d", "metric": "acc", "item": "{{ id }}"},
    "generation": {
        "evalscope": "arc",
        "dataset": "o/d",
        "max_new_tokens": 8,
        "metric": "accuracy",
        "item": "{{ metadata.id }}",
    },
}
WriteSuite = Callable[..., Path]


def task(**changed: Any) -> dict[str, Any]:
    return {**TASK, **changed}


def stock(block: str = "generation", drop: str = "", **changed: Any) -> dict[str, Any]:
    inner = {key: value for key, value in {**STOCK[block], **changed}.items() if key != drop}
    return {**STOCK, block: inner}


@pytest.fixture
def write(tmp_path: Path) -> WriteSuite:
    """`write(TASK, ...)` -> a suite file of these tasks, with an items file beside it."""

    def write_suite(*tasks: Any, folder: str = "suite", text: str | None = None, **top: Any) -> Path:
        path = tmp_path / folder / "own.yaml"
        path.parent.mkdir(exist_ok=True)
        items = path.with_name("items.jsonl")
        if not items.exists():
            items.write_text(json.dumps(ITEM) + "\n")
        path.write_text(text if text is not None else yaml.safe_dump({"name": "own", "tasks": list(tasks), **top}))
        return path

    return write_suite


def refusal(path: Path | str) -> UsageError:
    with pytest.raises(UsageError) as error:
        load_suite(path)
    assert error.value.found and error.value.mend, str(error.value)
    return error.value


# --- shipped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_shipped_suite_loads_and_bears_its_name(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name and suite.title and suite.tasks
    for each in suite.tasks:
        assert list(each.rungs) in (["loglikelihood", "generation"], ["generation"])
        assert all(settings.item for settings in each.rungs.values())
        assert each.items is None or each.items.datasets or len(each.items.load(limit=1)) > 0


def test_smoke_is_the_five_benchmarks_with_their_datasets() -> None:
    suite = load_suite("smoke")
    assert [each.name for each in suite.tasks] == ["arc_easy", "arc_challenge", "hellaswag", "winogrande", "gsm8k"]
    assert suite.datasets[0] == "allenai/ai2_arc" and len(set(suite.datasets)) == len(suite.datasets)


def test_own_suite_is_read_as_written(write: WriteSuite) -> None:
    suite = load_suite(write(task(temperature=1, seeds=[0, 7], chance=0.5, metric="acc_norm", chat_template=False)))
    (only,) = suite.tasks
    ranked, replied = Loglikelihood.of(only), Generation.of(only)
    assert replied.seeds == (0, 7) and replied.sampling.temperature == 1.0 and replied.chance == 0.0
    assert ranked.chance == 0.5 and ranked.metric == "acc_norm"
    assert not ranked.chat_template and replied.metric == "exact_match"
    assert isinstance(only.items, FileItems) and only.items.path.name == "items.jsonl" and suite.datasets == ()


def test_a_value_alone_stands_for_a_list_of_it(write: WriteSuite) -> None:
    (only,) = load_suite(write(task(seeds=3, stop="\n"))).tasks
    assert (Generation.of(only).seeds, Generation.of(only).stop) == ((3,), ("\n",))


@pytest.mark.parametrize("rung", ["loglikelihood", "generation"])
def test_a_task_may_have_one_rung(write: WriteSuite, rung: str) -> None:
    alone = {"name": "one", rung: STOCK[rung]}
    suite = load_suite(write(alone, STOCK))
    assert [list(each.rungs) for each in suite.tasks] == [[rung], ["loglikelihood", "generation"]]
    on = {name: [each.name for each in suite.tasks_on(name)] for name in ("loglikelihood", "generation")}
    assert on.pop(rung) == ["one", "arc"] and list(on.values()) == [["arc"]]


def test_rungs_of_an_items_task(write: WriteSuite) -> None:
    """`rungs:` chooses, a block adds or changes; flat keys that no chosen rung takes are refused."""
    (replies,) = load_suite(write(task(rungs=["generation"]))).tasks
    assert list(replies.rungs) == ["generation"]
    (both,) = load_suite(write(task(loglikelihood={"metric": "acc_norm"}))).tasks
    assert list(both.rungs) == ["loglikelihood", "generation"] and Loglikelihood.of(both).metric == "acc_norm"
    assert "unknown key 'chance'" in refusal(write(task(rungs=["generation"], chance=0.5))).asked


def test_items_without_choices_are_only_asked_for_replies(write: WriteSuite) -> None:
    free = {"id": "f", "question": "who?", "target": "ada"}
    path = write(task(rungs=["generation"]))
    path.with_name("items.jsonl").write_text(json.dumps(free) + "\n")
    (only,) = load_suite(path).tasks
    assert only.items is not None and only.items.load()[0].choices == ()
    path.write_text(yaml.safe_dump({"name": "own", "tasks": [TASK]}))
    error = refusal(path)
    assert "ranks choices" in error.asked and "'f'" in error.found[0] and "generation" in error.mend[0]


def test_facts_for_the_manifest(write: WriteSuite) -> None:
    own, stock_task = load_suite(write(task(chance=0.5), STOCK)).tasks
    ranked, replied = (settings.facts(own) for settings in own.rungs.values())
    assert (ranked.metric, ranked.chance, ranked.source) == ("acc", 0.5, "lm-eval, items of the suite, 0-shot")
    assert replied.source.endswith("exact match of the extracted answer, 0-shot, at most 8 tokens, temperature 0")
    assert replied.settings["extract"] == TASK["extract"] and "temperature" not in replied.settings
    ranked, replied = (settings.facts(stock_task) for settings in stock_task.rungs.values())
    assert ranked.source == "lm-eval, arc/arc_easy.yaml, 0-shot"
    assert replied.source == "evalscope arc, 0-shot, at most 8 tokens, temperature 0"


# --- malformed ------------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[list[Any], str, str]] = {
    # name: (tasks, in what is said, in what to do)
    "tasks_empty": ([], "tasks", ""),
    "task_is_text": (["sums"], "tasks[0] should be a mapping", ""),
    "unknown_key": ([task(max_new_token=8)], "did you mean 'max_new_tokens'?", "spell it"),
    "unknown_key_in_block": ([stock(metirc="accuracy")], "did you mean 'metric'?", "spell it"),
    "key_of_items_without_items": ([{**STOCK, "extract": "(a)"}], "unknown key 'extract'", "spell it"),
    "text_for_a_number": ([task(max_new_tokens="many")], 'max_new_tokens should be an integer\n"many"', ""),
    "truth_for_a_number": ([task(max_new_tokens=True)], "max_new_tokens should be an integer\ntrue", ""),
    "number_for_truth": ([task(chat_template="no")], 'chat_template should be a boolean\n"no"', ""),
    "text_for_seeds": ([task(seeds=["a"])], 'seeds[0] should be an integer\n"a"', ""),
    "seeds_empty": ([task(seeds=[])], "seeds should have at least 1 item", ""),
    "seeds_twice": ([task(seeds=[1, 1])], "`seeds` must be distinct\n[1, 1]", "seeds: [0, 1, 2]"),
    "seed_negative": ([task(seeds=[-50])], "seeds[0] should be greater than or equal to 0\n-50", ""),
    "budget_zero": ([task(max_new_tokens=0)], "max_new_tokens should be greater than or equal to 1\n0", ""),
    "temperature_below": ([task(temperature=-0.1)], "temperature should be greater than or equal to 0\n-0.1", ""),
    "temperature_nan": ([task(temperature=float("nan"))], "temperature should be a finite number\nNaN", ""),
    "top_p_above": ([task(top_p=1.5)], "top_p should be less than or equal to 1\n1.5", ""),
    "chance_above": ([task(chance=25)], "chance should be less than or equal to 1\n25", ""),
    "no_budget": ([{k: v for k, v in TASK.items() if k != "max_new_tokens"}], "lacks `max_new_tokens`", "tokens: ..."),
    "items_missing": ([task(items="other.jsonl")], "its items are not there", "relative to the suite"),
    "items_not_a_text": ([task(items=["items.jsonl"])], "items should be a string or a mapping", ""),
    "items_of_two_sources": ([task(items={"lm_eval": "a", "evalscope": "b"})], "names one of", "items: FILE.jsonl"),
    "items_of_no_source": ([task(items={"lm_evil": "a"})], "names one of", "items: FILE.jsonl"),
    "items_without_dataset": ([task(items={"evalscope": "arc"})], "items lacks `dataset`", "dataset: ..."),
    "no_extract": ([{k: v for k, v in TASK.items() if k != "extract"}], "lacks `extract`", "extract: 'answer"),
    "regex_broken": ([task(extract="(a")], "not a regular expression", "extract:"),
    "regex_without_group": ([task(extract="a+")], "needs one group", "extract:"),
    "regex_with_two_groups": ([task(extract="(a)(b)")], "needs one group", "extract:"),
    "extractor_unknown": ([task(extractors=["strct"])], "did you mean 'strict'?", "NAME"),
    "extractor_twice": ([task(extractors=["strict", "strict"])], "one extractor twice", "once"),
    "metric_unknown": ([task(metric="accuracy")], "`metric` of an `items:` task", "acc or acc_norm"),
    "two_of_one_name": ([task(), task()], "two tasks of one name", "its own name"),
    "name_with_a_slash": ([task(name="a/b")], "letters, digits", "name: arc_easy"),
    "no_name": ([{k: v for k, v in TASK.items() if k != "name"}], "task 1 lacks `name`", "name: ..."),
    "both_lm_eval": ([stock("loglikelihood", lm_eval_file="x.yaml")], "one of `lm_eval` and", "lm_eval:"),
    "neither_lm_eval": ([stock("loglikelihood", drop="lm_eval")], "one of `lm_eval` and", "lm_eval:"),
    "no_item": ([stock(drop="item")], "generation needs `item`", "item:"),
    "no_dataset": ([stock(drop="dataset")], "generation needs `dataset`", "dataset:"),
    "no_evalscope": ([stock(drop="evalscope")], "needs `evalscope`", "evalscope: arc"),
    "no_metric": ([stock(drop="metric")], "lacks `metric`", "metric: ..."),
    "extract_of_a_stock_task": ([stock(extract="(a)")], "has no use for `extract`", "take it out"),
    "shots_of_an_items_task": ([task(generation={"num_fewshot": 2})], "`num_fewshot` belongs to a library", "take out"),
    "no_rung": ([{"name": "arc"}], "on no rung", "`generation:`"),
    "rung_unknown": ([task(rungs=["generatoin"])], "did you mean 'generation'?", "rungs: [generation]"),
    "rungs_empty": ([task(rungs=[])], "rungs should have at least 1 item", ""),
    "block_is_a_list": ([{**STOCK, "generation": []}], "generation should be a mapping", ""),
    "block_is_nothing": ([task(generation=None)], "generation should be a mapping", ""),
    "lm_eval_file": (
        [stock("loglikelihood", drop="lm_eval", lm_eval_file="x.yaml")],
        "x.yaml is not there",
        "relative to",
    ),
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_malformed_suite_says_what_is_wrong_and_what_to_write(write: WriteSuite, name: str) -> None:
    tasks, said, mend = MALFORMED[name]
    error = refusal(write(*tasks))
    assert said in f"{error.asked}\n{error.found[0]}", str(error)
    assert mend in "\n".join(error.mend), str(error)
    assert "own.yaml" in error.asked
    if tasks and isinstance(tasks[0], dict) and name not in ("no_name", "two_of_one_name"):
        assert tasks[0]["name"] in f"{error.asked}\n{error.found}", str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [", "is not YAML"),
        ("- name: a\n", "should be a mapping"),
        ("", "should be a mapping"),
        ("just words", "should be a mapping"),
        ("tasks: [{}]\n", "lacks `name`"),
        ("name: 5\ntasks: [{}]\n", "name should be a string"),
        ("name: own\n", "lacks `tasks`"),
        ("name: own\ntasks: {}\n", "tasks should be a list"),
        ("name: own\ntasks: [{name: 2020-01-01}]\n", "put it in quotes"),
        ("name: own\ntask: []\n", "did you mean 'tasks'?"),
        ("name: a\nname: b\ntasks: []\n", "stands twice"),
        ("name: !!python/object:os.system x\n", "is not YAML"),
    ],
)
def test_text_that_is_no_suite(write: WriteSuite, text: str, said: str) -> None:
    error = refusal(write(text=text))
    assert said in f"{error.asked}\n{error.found}", str(error)


def test_suite_that_is_not_utf8(write: WriteSuite) -> None:
    path = write(TASK)
    path.write_bytes(b"name: \xff\xfe\n")
    assert "is not YAML" in refusal(path).asked


@pytest.mark.parametrize("name", ["smok", "nothing", "no/such/file.yaml", "x" * 5000])
def test_unknown_suite_names_those_there_are(name: str) -> None:
    error = refusal(name)
    assert "smoke" in error.found[0] and "--suite FILE.yaml" in error.mend[0]
    assert ("did you mean 'smoke'?" in error.asked) == (name == "smok")


def test_broken_item_is_told_with_suite_task_and_line(write: WriteSuite) -> None:
    path = write(TASK)
    path.with_name("items.jsonl").write_text(json.dumps({**ITEM, "gold": 2}))
    error = refusal(path)
    assert "own.yaml, task 'sums': items.jsonl:1: `gold` must be an index into 2 choices" in error.asked


# --- digest ---------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return load_suite(path).digest


def test_digest_stays_with_comments_titles_order_of_keys_and_place(write: WriteSuite) -> None:
    first = write(TASK)
    before = digest(first)
    first.write_text("# a comment\n" + first.read_text())
    assert digest(first) == before
    assert digest(write(task(title="Sums"), folder="elsewhere", title="Other")) == before
    assert digest(write(dict(reversed(TASK.items())), folder="third")) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"max_new_tokens": 9},
        {"extract": r"(\d)"},
        {"chat_template": False},
        {"chance": 0.5},
        {"seeds": [1]},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 3},
        {"metric": "acc_norm"},
        {"subject": "{{ id }}"},
        {"stop": ["\n"]},
        {"extractors": ["strict"]},
        {"rungs": ["generation"]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_digest_moves_with_each_setting(write: WriteSuite, changed: dict[str, Any]) -> None:
    assert digest(write(task(**changed), folder="b")) != digest(write(TASK, folder="a"))


@pytest.mark.parametrize("block", ["loglikelihood", "generation"])
def test_digest_moves_with_each_setting_of_a_stock_task(write: WriteSuite, block: str) -> None:
    before = digest(write(STOCK))
    changes: dict[str, Any] = {"dataset": "o/e", "num_fewshot": 2, "item": "{{ x }}", "metric": "n", "chance": 0.1}
    changes |= {"subset": "s", "stop": ["\n"]} if block == "generation" else {"chat_template": True}
    digests = {key: digest(write(stock(block, **{key: value}))) for key, value in changes.items()}
    assert before not in digests.values() and len(set(digests.values())) == len(changes)


def test_digest_stays_with_a_setting_that_a_later_version_adds(
    write: WriteSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(write(TASK)), digest(write(STOCK))

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Later(Generation):
        think: bool = False

    monkeypatch.setattr(sys.modules[Generation.__module__], "Later", Later, raising=False)
    monkeypatch.setitem(
        RUNGS, "generation", dataclasses.replace(RUNGS["generation"], home=f"{Generation.__module__}:Later")
    )
    assert (digest(write(TASK)), digest(write(STOCK))) == before
    assert digest(write(stock(think=True))) != before[1]


def test_digest_moves_with_one_byte_of_the_items(write: WriteSuite) -> None:
    path = write(TASK)
    before = digest(path)
    items = path.with_name("items.jsonl")
    items.write_text(items.read_text().replace("1 + 1", "1 + 2"))
    assert digest(path) != before


def test_digest_moves_with_the_suites_own_lm_eval_files(write: WriteSuite) -> None:
    path = write(stock("loglikelihood", drop="lm_eval", lm_eval_file="own_task.yaml"))
    path.with_name("own_task.yaml").write_text("task: x\n")
    path.with_name("own_task.py").write_text("A = 1\n")
    before = digest(path)
    path.with_name("own_task.py").write_text("A = 2\n")
    assert digest(path) != before
