"""Items that stand twice, cannot be asked, or can never be right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.items import by_occurrence
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.engines.base import Engine
from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.protocols.lm_eval_records import never_ranked_first
from perplexity_lies.record.records import ItemRecord, Status

from .test_generation import stock_suite

Ask = Callable[..., list[ItemRecord]]
Opened = Callable[[Path], Engine]


def twins(folder: Path, contents: list[str]) -> Any:
    """A stock task over rows whose ids are all alike."""
    suite = stock_suite(folder, item="all alike")
    import datasets

    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": "all alike", "question": text, "choices": choices, "answerKey": "B"} for text in contents]
    for file in (folder / "hub").rglob("*.parquet"):
        datasets.Dataset.from_list(rows).to_parquet(file)
    return suite


def test_rows_that_stand_twice_pair_by_occurrence(tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path) -> None:
    suite = twins(tmp_path, ["which?"] * 3)
    for rung in ("loglikelihood", "generation"):
        found = ask(rung, opened(tiny_llama), suite, data=tmp_path / "hub")
        assert [record.item for record in found] == ["all alike", "all alike #2", "all alike #3"]
        assert len({record.prompt_sha256 for record in found}) == 1


@pytest.mark.parametrize("rung", ["loglikelihood", "generation"])
def test_one_name_of_two_questions_is_told_before_anything_is_asked(
    rung: str, tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="two items are named 'all alike'"):
        ask(rung, opened(tiny_llama), twins(tmp_path, ["which?", "who?"]), data=tmp_path / "hub")
    assert (tmp_path / f"{rung}.jsonl").read_text() == ""


def test_numbers_of_occurrences() -> None:
    named = [("a", "1"), ("b", "2"), ("a", "1"), ("a #2", "3"), ("a", "1")]
    assert by_occurrence(named, "here", "mend") == ["a", "b", "a #3", "a #2", "a #4"]


def test_an_item_that_cannot_be_asked_is_one_refused_record(
    tiny_llama: Path, opened: Opened, ask: Ask, items_suite: Any
) -> None:
    """The tokenizer drops the second item's second choice."""
    items = [
        {"id": f"i{n}", "question": "a", "choices": ["1", choice], "gold": 0, "target": "1"}
        for n, choice in enumerate(("2", "\u200b", "3"))
    ]
    engine = opened(tiny_llama)
    real = engine.encode
    try:
        engine.encode = lambda text, add=None: real(text.removesuffix(" \u200b"), add)  # type: ignore[method-assign]
        one, other, third = ask("loglikelihood", engine, items_suite(items))
    finally:
        engine.encode = real  # type: ignore[method-assign]
    assert (one.status, other.status, third.status) == (Status.SCORED, Status.REFUSED, Status.SCORED)
    assert "adds no token to its prompt" in other.error and other.choice_loglikelihoods_nats == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"choices": ["x", "y", "x"], "gold": 2}, "two equal choices"),
        ({"target": " 7"}, "can never be right"),
        ({"target": "7\n"}, "can never be right"),
    ],
)
def test_what_files_alone_tell_is_refused_when_the_suite_is_read(changed: Any, said: str, items_suite: Any) -> None:
    item = {"id": "a", "question": "q", "choices": ["x", "y"], "gold": 0, "target": "x", **changed}
    with pytest.raises(UsageError, match=said) as error:
        items_suite([item])
    assert "'own'" in error.value.asked and "'a'" in error.value.asked and error.value.mend


def test_references_that_tokenizer_or_budget_do_not_allow(
    tiny_llama: Path, opened: Opened, ask: Ask, items_suite: Any
) -> None:
    targets = ["1", "twelve hundred and one and many more", "\U0001f98a"]
    own = {"question": "a", "choices": ["1", "2"], "gold": 0}
    items = [{"id": f"i{n}", "target": target, **own} for n, target in enumerate(targets)]
    engine = opened(tiny_llama)
    spelled = engine.tokenizer.decode(engine.encode(targets[2], False), skip_special_tokens=True)
    found = ask("generation", engine, items_suite(items, max_new_tokens=3))
    assert found[0].never_right == "" and "more tokens" in found[1].never_right
    assert bool(found[2].never_right) and (spelled == targets[2] or "cannot spell" in found[2].never_right)


def test_choices_of_the_same_tokens() -> None:
    assert never_ranked_first([(1, 2), (1, 3), (1, 2)], 2) and not never_ranked_first([(1, 2), (1, 3), (1, 2)], 0)
    assert not never_ranked_first([(), (), ()], 2), "a choice that cannot be asked is another matter"


@pytest.mark.parametrize(
    ("rung", "metric", "given"),
    [("loglikelihood", "accc", "acc, acc_norm"), ("generation", "acc_norm", "accuracy")],
)
def test_a_wrong_metric_is_told_before_anything_runs(rung: str, metric: str, given: str, tmp_path: Path) -> None:
    suite = stock_suite(tmp_path)
    raw = yaml.safe_load(suite.path.read_text())
    raw["tasks"][0][rung]["metric"] = metric
    suite.path.write_text(yaml.safe_dump(raw))
    (task,) = load_suite(suite.path).tasks
    with pytest.raises(UsageError, match=f"there is no metric '{metric}'") as error:
        task.rungs[rung].check_metric(task, load_suite(suite.path))
    assert error.value.found == (f"metrics: {given}",)
    for name, settings in task.rungs.items():
        if name != rung:
            settings.check_metric(task, suite)


def test_a_benchmark_whose_package_is_absent_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evalscope.benchmarks.ifeval.ifeval_adapter as ifeval

    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("'langdetect' is not installed\npip install evalscope[ifeval]")

    monkeypatch.setattr(ifeval, "check_import", absent)
    suite = stock_suite(tmp_path, evalscope="ifeval", metric="prompt_level_strict")
    (task,) = suite.tasks
    with pytest.raises(MissingError, match="'ifeval' needs a package") as error:
        task.rungs["generation"].check_metric(task, suite)
    assert "langdetect" in error.value.found[0] and "\n" not in error.value.found[0] and json.dumps(error.value.mend)


# --- one question on both rungs -------------------------------------------------------------------------------------


@pytest.fixture
def adds_bos(llama_copy: Path) -> Path:
    """A checkpoint whose tokenizer puts BOS before a text, and whose chat template writes none."""
    file = llama_copy / "tokenizer.json"
    content = json.loads(file.read_text())
    bos = next(token for token in content["added_tokens"] if token["special"])
    named = {"id": bos["content"], "ids": [bos["id"]], "tokens": [bos["content"]]}
    one, other = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    first = {"SpecialToken": {"id": bos["content"], "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [first, one], "pair": [first, one, other],
        "special_tokens": {bos["content"]: named},
    }  # fmt: skip
    file.write_text(json.dumps(content))
    settings = json.loads((llama_copy / "tokenizer_config.json").read_text())
    (llama_copy / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": bos["content"]}))
    (llama_copy / "chat_template.jinja").write_text("user: {{ messages[0]['content'] }}\nassistant:")
    return llama_copy


def test_both_rungs_of_an_items_task_begin_alike(adds_bos: Path, opened: Opened, ask: Ask, items_suite: Any) -> None:
    """As HF's `apply_chat_template` gives them: without a BOS that the template does not write."""
    engine, suite = opened(adds_bos), items_suite(3, chat_template=True)
    assert len(engine.encode("a")) == len(engine.encode("a", False)) + 1
    ranked, replied = (ask(rung, engine, suite) for rung in ("loglikelihood", "generation"))
    assert [r.prompt_tokens for r in ranked] == [r.prompt_tokens for r in replied]
    assert not any(record.bos_before_template for record in ranked)


def test_a_stock_task_begins_as_lm_eval_has_it_and_says_so(
    adds_bos: Path, opened: Opened, ask: Ask, tmp_path: Path
) -> None:
    suite = stock_suite(tmp_path)
    raw = yaml.safe_load(suite.path.read_text())
    raw["tasks"][0]["loglikelihood"]["chat_template"] = True
    suite.path.write_text(yaml.safe_dump(raw))
    ranked = ask("loglikelihood", opened(adds_bos), load_suite(suite.path), data=tmp_path / "hub")
    assert all(record.bos_before_template for record in ranked)


def test_a_benchmark_of_many_subjects_is_one_task(tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path) -> None:
    """Its subjects are the clusters, by the name of lm-eval's file; equal rows of two subjects pair by occurrence."""
    import datasets

    data, names = tmp_path / "hub" / "o" / "d", ("abstract_algebra", "anatomy", "astronomy")
    rows = [{"question": text, "choices": ["a", "b", "c", "d"], "answer": 1} for text in ("one", "two")]
    configs = []
    for name in names:
        files = []
        for split in ("test", "dev"):
            (data / name).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(data / name / f"{split}.parquet")
            files.append({"split": split, "path": f"{name}/{split}.parquet"})
        configs.append({"config_name": name, "data_files": files})
    (data / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    ranking = {
        "lm_eval": "mmlu/default/mmlu_a*.yaml", "dataset": "o/d", "metric": "acc", "item": "{{ question }}",
        "subject": "{{ lm_eval_task[5:] }}",
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump({"name": "m", "tasks": [{"name": "m", "loglikelihood": ranking}]})
    )
    suite = load_suite(tmp_path / "own.yaml")
    found = ask("loglikelihood", opened(tiny_llama), suite, data=tmp_path / "hub")
    assert [(record.subject, record.item) for record in found] == [
        ("abstract_algebra", "one"), ("abstract_algebra", "two"), ("anatomy", "one #2"), ("anatomy", "two #2"),
        ("astronomy", "one #3"), ("astronomy", "two #3"),
    ]  # fmt: skip
    (task,) = suite.tasks
    assert task.rungs["loglikelihood"].metrics(task, suite) == ("acc",)
