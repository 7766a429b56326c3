"""Generation records are what plain evalscope finds with its own checkpoint loading, item by item."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.sources import FileItems
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import Engine, EngineOptions
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.protocols.generation import Generation
from perplexity_lies.protocols.hygiene import quarantine
from perplexity_lies.record.records import ItemRecord, Status

Ask = Callable[..., list[ItemRecord]]
Opened = Callable[[Path], Engine]


def plain_evalscope(
    checkpoint: Path, benchmark: str, args: dict[str, Any], max_new_tokens: int, work: Path, limit: int | None = None
) -> list[dict[str, Any]]:
    """Reviews of plain evalscope, one item at a time, greedy, in its order."""
    with quarantine(work / "plain.log"):
        from evalscope import TaskConfig, run_task

        run_task(
            TaskConfig(
                model=str(checkpoint), model_id="plain", eval_type="llm_ckpt", datasets=[benchmark],
                model_args={"precision": "float32", "device_map": "cpu"}, dataset_args={benchmark: args},
                dataset_hub="local", generation_config={"max_tokens": max_new_tokens, "do_sample": False},
                eval_batch_size=1, limit=limit, work_dir=str(work / "plain"), no_timestamp=True,
            )
        )  # fmt: skip
    (path,) = (work / "plain" / "reviews").rglob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: int(row["index"]))


def assert_equal(records: list[ItemRecord], reviews: list[dict[str, Any]], extractor: str) -> None:
    assert len(records) == len(reviews) > 0
    for record, review in zip(records, reviews, strict=True):
        score = review["sample_score"]["score"]
        assert record.prompt == review["messages"][0]["content"]
        assert record.text == score["prediction"]
        read = record.headline
        assert read.answer == str(score["extracted_prediction"] or "").strip()
        assert read.scores == score["value"] and record.score == score["value"][read.metric]
        assert [record.gold] == review["target"]
        assert read.extractor == extractor and len(record.token_ids) == record.completion_tokens
        assert read.span is None or record.text[slice(*read.span)] == read.answer


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_own_items_equal_plain_evalscope(
    model_type: str,
    tiny_checkpoint: Callable[..., Path],
    opened: Opened,
    items_suite: Callable[..., Suite],
    ask: Ask,
    tmp_path: Path,
) -> None:
    checkpoint = tiny_checkpoint(model_type)
    suite = items_suite(8, extract=r"(\w)", max_new_tokens=20)
    ours = ask("generation", opened(checkpoint), suite)
    source = suite.tasks[0].items
    assert isinstance(source, FileItems)
    extract = Generation.of(suite.tasks[0]).extract
    args = {"local_path": str(source.path), "few_shot_num": 0, "extra_params": {"extract": extract}}
    assert_equal(ours, plain_evalscope(checkpoint, "plies_items", args, 20, tmp_path), "pattern@1")
    assert any(record.headline.answer for record in ours)
    asked = source.load()
    assert [(r.choices, r.gold_index, r.gold) for r in ours] == [(i.choices, i.gold, i.target) for i in asked]


def test_replies_through_a_chat_template_equal_hf_generate(
    tiny_checkpoint: Callable[..., Path], opened: Opened, items_suite: Callable[..., Suite], ask: Ask
) -> None:
    """evalscope 1.14.1 cannot apply a chat template under transformers 5, so the reference is `generate` itself."""
    import torch
    import transformers

    checkpoint = tiny_checkpoint("qwen3", chat_template=True)
    records = ask("generation", opened(checkpoint), items_suite(6, max_new_tokens=20))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for record in records:
        chat = [{"role": "user", "content": record.prompt}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        whole = model.generate(**asked, do_sample=False, max_new_tokens=20)[0]
        ids = whole[asked["input_ids"].shape[1] :]
        assert record.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert (record.prompt_tokens, record.completion_tokens) == (asked["input_ids"].shape[1], len(ids))
        assert record.finish_reason == ("stop" if ids[-1] == tokenizer.eos_token_id else "length")


@pytest.mark.slow
def test_stock_arc_equals_plain_evalscope(
    shared_models: Path, hub: Path, opened: Opened, ask: Ask, tmp_path: Path, arc_only: Suite
) -> None:
    checkpoint = shared_models / "stories260K"
    ours = ask("generation", opened(checkpoint), arc_only, limit=4, data=hub)
    args = {"local_path": str(hub / "allenai" / "ai2_arc"), "few_shot_num": 0, "subset_list": ["ARC-Easy"]}
    reviews = plain_evalscope(checkpoint, "arc", args, 64, tmp_path, limit=4)
    assert_equal(ours, reviews, f"evalscope@{version('evalscope')}")
    assert all(record.gold == "ABCDE"[record.gold_index] and len(record.choices) > 2 for record in ours)


@pytest.fixture
def arc_only(tmp_path: Path) -> Suite:
    """ARC-Easy of the smoke suite, alone."""
    raw = yaml.safe_load(load_suite("smoke").path.read_text())
    (tmp_path / "arc.yaml").write_text(yaml.safe_dump({"name": "arc", "tasks": raw["tasks"][:1]}))
    return load_suite(tmp_path / "arc.yaml")


@pytest.mark.slow
def test_items_of_smoke_pair_across_rungs(shared_models: Path, hub: Path, opened: Opened, ask: Ask) -> None:
    engine, suite = opened(shared_models / "stories260K"), load_suite("smoke")
    named: dict[str, dict[str, list[str]]] = {}
    for protocol in ("loglikelihood", "generation"):
        for record in ask(protocol, engine, suite, limit=3, data=hub):
            named.setdefault(record.task, {}).setdefault(protocol, []).append(record.item)
    assert list(named) == [task.name for task in suite.tasks]
    for task, by_protocol in named.items():
        assert len(set(by_protocol["generation"])) == 3, task
        assert set(by_protocol["generation"]) == set(by_protocol["loglikelihood"]), task


# --- sampling -------------------------------------------------------------------------------------------------------


def test_two_seeds_give_two_records_that_come_again(
    tiny_llama: Path, opened: Opened, items_suite: Any, ask: Ask, tmp_path: Path
) -> None:
    engine, suite = opened(tiny_llama), items_suite(6, temperature=1.0, seeds=[0, 5])
    first = ask("generation", engine, suite)
    assert [(r.seed, r.item) for r in first] == [(seed, f"item-{i}") for seed in (0, 5) for i in range(6)]
    assert all(a.prompt_sha256 == b.prompt_sha256 for a, b in zip(first[:6], first[6:], strict=True))
    assert [r.text for r in first[:6]] != [r.text for r in first[6:]]
    (tmp_path / "generation.jsonl").unlink()
    assert ask("generation", engine, suite) == first
    (tmp_path / "generation.jsonl").unlink()
    fewer = ask("generation", engine, items_suite(2, temperature=1.0, seeds=[5]))
    assert fewer == [record for record in first[6:8]], "a reply hangs on its seed and prompt alone"


def test_limit_keeps_the_first_items(tiny_llama: Path, opened: Opened, items_suite: Any, ask: Ask) -> None:
    suite = items_suite(6)
    assert [r.item for r in ask("generation", opened(tiny_llama), suite, limit=2)] == ["item-0", "item-1"]
    assert [r.item for r in ask("loglikelihood", opened(tiny_llama), suite, limit=2)] == ["item-0", "item-1"]


# --- what cannot be asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neo"])
def test_prompt_beyond_learned_positions_is_refused(
    model_type: str, learned_positions: Callable[[str], Path], opened: Opened, items_suite: Any, ask: Ask
) -> None:
    engine = opened(learned_positions(model_type))
    questions = {"fits": "a b", "long": "x" * 200, "also": "c d"}
    asked = [
        {"id": name, "question": question, "choices": ["1", "2"], "gold": 0, "target": "1"}
        for name, question in questions.items()
    ]
    fits, long, also = ask("generation", engine, items_suite(asked))
    assert long.status is Status.REFUSED and long.score == 0.0 and "48 positions" in long.error
    assert long.text == "" and long.finish_reason == "" and long.headline.answer == ""
    for record in (fits, also):
        assert record.status is not Status.REFUSED and record.error == "" and record.completion_tokens > 0


def test_all_items_refused_is_no_crash(
    learned_positions: Callable[[str], Path], opened: Opened, items_suite: Any, ask: Ask
) -> None:
    asked = [{"id": "l", "question": "x" * 200, "choices": ["1", "2"], "gold": 0, "target": "1"}]
    (record,) = ask("generation", opened(learned_positions("gpt2")), items_suite(asked))
    assert record.status is Status.REFUSED


def test_chat_template_that_does_not_take_the_messages(
    llama_copy: Path, opened: Opened, items_suite: Any, ask: Ask
) -> None:
    (llama_copy / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    with pytest.raises(CheckpointError) as error:
        ask("generation", opened(llama_copy), items_suite(1))
    assert "user messages" in error.value.asked and error.value.found == ("no users here",)


def stock_suite(folder: Path, **changed: Any) -> Suite:
    """A stock task on a mirror of four ARC-like rows."""
    import datasets

    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": f"q{i}", "question": f"which {i}?", "choices": choices, "answerKey": "B"} for i in range(4)]
    data = folder / "hub" / "o" / "d" / "ARC-Easy"
    data.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(rows).to_parquet(data / f"{split}-00000-of-00001.parquet")
    generation = {
        "evalscope": "arc", "dataset": "o/d", "subset": "ARC-Easy", "max_new_tokens": 4, "metric": "accuracy",
        "item": "{{ metadata.id }}", **changed,
    }  # fmt: skip
    ranking = {"lm_eval": "arc/arc_easy.yaml", "dataset": "o/d", "metric": "acc", "item": "{{ id }}"}
    tasks = [{"name": "own", "loglikelihood": ranking, "generation": generation}]
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": tasks}))
    files = [{"split": s, "path": f"ARC-Easy/{s}-00000-of-00001.parquet"} for s in ("train", "validation", "test")]
    card = yaml.safe_dump({"configs": [{"config_name": "ARC-Easy", "data_files": files}]})
    (data.parent / "README.md").write_text(f"---\n{card}---\n")
    return load_suite(folder / "own.yaml")


@pytest.mark.parametrize(
    ("changed", "asked", "mend"),
    [
        ({"evalscope": "arcc"}, "evalscope has no benchmark 'arcc'", "benchmark-info"),
        ({"subset": "ARC-Medium"}, "evalscope cannot load 'arc'", "subset:"),
        ({"metric": "acc"}, "no metric 'acc'", "metric:"),
        ({"item": "{{ metadata.nothing }}"}, "does not fit the item", "fields there"),
        ({"item": "{{ metadata.id"}, "does not fit the item", "fields there"),
        ({"item": "  "}, "renders to an empty string", "fields there"),
        ({"item": "all alike"}, "two items are named 'all alike'", "`item:`"),
    ],
    ids=["benchmark", "subset", "metric", "field", "template", "blank", "alike"],
)
def test_task_that_evalscope_cannot_ask(
    changed: dict[str, Any], asked: str, mend: str, tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path
) -> None:
    suite = stock_suite(tmp_path, **changed)
    with pytest.raises(UsageError) as error:
        ask("generation", opened(tiny_llama), suite, data=tmp_path / "hub")
    assert asked in error.value.asked and "'own'" in error.value.asked, str(error.value)
    assert error.value.found and mend in error.value.mend[0], str(error.value)


def test_stock_task_on_a_mirror_pairs_across_rungs(tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path) -> None:
    suite, engine = stock_suite(tmp_path), opened(tiny_llama)
    both = [ask(protocol, engine, suite, data=tmp_path / "hub") for protocol in ("loglikelihood", "generation")]
    assert [record.item for record in both[0]] == [record.item for record in both[1]] == ["q0", "q1", "q2", "q3"]


def test_engine_is_asked_once(tiny_llama: Path, items_suite: Any, ask: Ask) -> None:
    """A second run over the same journal makes no call of the engine and gives equal records."""
    from perplexity_lies.engines.torch import TorchEngine

    class Counting(TorchEngine):
        asked = 0

        def generate(self, requests: Any, finished: Any = None) -> Any:
            type(self).asked += 1
            yield from super().generate(requests, finished)

    engine, suite = Counting(resolve(str(tiny_llama)), EngineOptions(device="cpu")), items_suite(4)
    first = ask("generation", engine, suite)
    assert Counting.asked == 1
    assert ask("generation", engine, suite) == first and Counting.asked == 1
    assert len(ask("generation", engine, items_suite(5))) == 5 and Counting.asked == 2


# --- readings and rungs ---------------------------------------------------------------------------------------------


def test_more_readings_stand_beside_the_headline(
    tiny_llama: Path, opened: Opened, items_suite: Any, ask: Ask, tmp_path: Path
) -> None:
    """The pattern of `items:` tasks and evalscope's own reading of stock tasks stay first."""
    engine, more = opened(tiny_llama), ["strict", r"pattern=(\w)"]
    plain, read = (ask("generation", engine, items_suite(4, extractors=wanted)) for wanted in ([], more))
    own = ["pattern@1", "strict@1", r"pattern@1=(\w)"]
    for one, other in zip(plain, read, strict=True):
        assert [reading.extractor for reading in other.readings] == own and one.readings == other.readings[:1]
    stock = ask("generation", engine, stock_suite(tmp_path, extractors=["last_letter"]), data=tmp_path / "hub")
    for record in stock:
        assert [reading.extractor.partition("@")[0] for reading in record.readings] == ["evalscope", "last_letter"]
        assert (record.choices, record.gold_index, record.gold) == (("a", "b", "c", "d"), 1, "B")


def test_a_rung_asks_only_the_tasks_that_have_it(tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path) -> None:
    """A question without choices is asked for a reply, and ranked nowhere."""
    free = {"id": "f", "question": "who?", "target": "ada"}
    (tmp_path / "free.jsonl").write_text(json.dumps(free) + "\n")
    (tmp_path / "both.jsonl").write_text(json.dumps({**free, "choices": ["ada", "ben"], "gold": 0}) + "\n")
    shared = {"extract": "(.*)", "max_new_tokens": 4}
    tasks = [
        {"name": "replies", "items": "free.jsonl", "rungs": ["generation"], **shared},
        {"name": "both", "items": "both.jsonl", "chat_template": False, **shared},
    ]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": tasks}))
    engine, suite = opened(tiny_llama), load_suite(tmp_path / "own.yaml")
    assert [record.task for record in ask("loglikelihood", engine, suite)] == ["both"]
    replies = ask("generation", engine, suite)
    assert [(record.task, record.choices, record.gold_index) for record in replies] == [
        ("replies", (), -1), ("both", ("ada", "ben"), 0),
    ]  # fmt: skip
