"""Items out of the libraries' own benchmarks: the words of the dataset, asked by our own rungs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.items import Item
from perplexity_lies.catalogue.mirror import Mirror, open_mirror
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite
from perplexity_lies.engines.base import Engine
from perplexity_lies.errors import UsageError
from perplexity_lies.protocols.hygiene import quarantine
from perplexity_lies.record.records import ItemRecord

ARC = {"dataset": "allenai/ai2_arc", "id": "{{ id }}"}
LM_EVAL = {"lm_eval": "arc/arc_easy.yaml", **ARC}
EVALSCOPE = {"evalscope": "arc", "subset": "ARC-Easy", **ARC, "id": "{{ metadata.id }}"}

Ask = Callable[..., list[ItemRecord]]
Opened = Callable[[Path], Engine]


@pytest.fixture
def mirror(hub: Path) -> Mirror:
    return open_mirror(hub)


def suite_of(folder: Path, items: dict[str, Any], **task: Any) -> Suite:
    """ARC-Easy as items on both rungs."""
    own = {"name": "arc", "items": items, "extract": "(.*)", "max_new_tokens": 4, "chat_template": False, **task}
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [own]}))
    return load_suite(folder / "own.yaml")


def suite_of_replies(folder: Path, items: dict[str, Any]) -> Suite:
    own = {"name": "a", "items": items, "extract": "(.*)", "max_new_tokens": 4, "rungs": ["generation"]}
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [own]}))
    return load_suite(folder / "own.yaml")


def items_of(suite: Suite, mirror: Mirror, log: Path, limit: int | None = 30) -> list[Item]:
    source = suite.tasks[0].items
    assert source is not None
    with quarantine(log):
        return source.load(mirror, limit)


def rows(mirror: Mirror, count: int) -> list[dict[str, Any]]:
    """The dataset's own rows."""
    import pyarrow.parquet

    (file,) = (mirror.folder("allenai/ai2_arc") / "ARC-Easy").glob("test-*.parquet")
    return list(pyarrow.parquet.read_table(file).to_pylist()[:count])


@pytest.mark.parametrize("library", ["lm_eval", "evalscope"])
def test_items_are_the_rows_of_the_dataset(library: str, mirror: Mirror, tmp_path: Path) -> None:
    raw = LM_EVAL if library == "lm_eval" else EVALSCOPE
    items = items_of(suite_of(tmp_path, raw), mirror, tmp_path / "log")
    assert len(items) == 30
    for item, row in zip(items, rows(mirror, 30), strict=True):
        assert item.id == row["id"] and list(item.choices) == row["choices"]["text"]
        assert item.gold == row["choices"]["label"].index(row["answerKey"]) and item.target == item.choices[item.gold]
        assert item.question == (f"Question: {row['question']}\nAnswer:" if library == "lm_eval" else row["question"])


def test_a_question_of_ones_own_and_names_by_content(mirror: Mirror, tmp_path: Path) -> None:
    raw = {**LM_EVAL, "question": "{{ question }}\n\n? ", "subject": "{{ answerKey }}"}
    del raw["id"]
    items = items_of(suite_of(tmp_path, raw), mirror, tmp_path / "log", 5)
    assert [item.question for item in items] == [f"{row['question']}\n\n? " for row in rows(mirror, 5)]
    assert [item.subject for item in items] == [row["answerKey"] for row in rows(mirror, 5)]
    assert len({item.id for item in items}) == 5 and all(item.id.startswith("sha256-") for item in items)
    assert items_of(suite_of(tmp_path, raw), mirror, tmp_path / "log", 3) == items[:3]


def test_free_answers_have_no_choices(mirror: Mirror, tmp_path: Path) -> None:
    """GSM8K of either library; the number is read out of lm-eval's worked answer."""
    gsm8k = {"lm_eval": "gsm8k/gsm8k.yaml", "dataset": "openai/gsm8k"}
    (item,) = items_of(suite_of_replies(tmp_path, gsm8k), mirror, tmp_path / "log", 1)
    assert item.choices == () and item.gold == -1 and "####" in item.target
    other = {"evalscope": "gsm8k", "dataset": "openai/gsm8k", "subset": "main"}
    (same,) = items_of(suite_of_replies(tmp_path, other), mirror, tmp_path / "log", 1)
    assert same.question in item.question and item.target.endswith(same.target)


def test_ranking_them_is_ranking_the_stock_task(
    hub: Path, tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path
) -> None:
    """lm-eval's prompt and choices as items give lm-eval's own log-likelihoods; the reply is asked in the same words."""
    engine, suite = opened(tiny_llama), suite_of(tmp_path, LM_EVAL)
    stock = {"lm_eval": "arc/arc_easy.yaml", "dataset": "allenai/ai2_arc", "metric": "acc", "item": "{{ id }}"}
    (tmp_path / "stock.yaml").write_text(
        yaml.safe_dump({"name": "stock", "tasks": [{"name": "arc", "loglikelihood": stock}]})
    )
    theirs = ask("loglikelihood", engine, load_suite(tmp_path / "stock.yaml"), limit=4, data=hub)
    ours = ask("loglikelihood", engine, suite, limit=4, data=hub)
    assert len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert one.item == other.item and one.prompt_sha256 == other.prompt_sha256
        assert one.choice_loglikelihoods_nats == other.choice_loglikelihoods_nats and one.score == other.score
    replies = ask("generation", engine, suite, limit=4, data=hub)
    assert [(r.item, r.prompt, r.choices, r.gold_index) for r in replies] == [
        (r.item, r.prompt, r.choices, r.gold_index) for r in ours
    ]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({"lm_eval": "arc/nothing.yaml", "dataset": "allenai/ai2_arc"}, "its lm-eval YAML is not there"),
        ({"lm_eval": "winogrande/default.yaml", "dataset": "allenai/winogrande"}, "cannot be asked as items"),
        ({"evalscope": "arcc", "dataset": "allenai/ai2_arc"}, "has no benchmark 'arcc'"),
        ({"evalscope": "arc", "dataset": "allenai/ai2_arc", "subset": "ARC-Medium"}, "cannot load 'arc'"),
        ({**LM_EVAL, "id": "{{ nothing }}"}, "does not fit the item"),
        ({**LM_EVAL, "id": "all alike"}, "two items have one id"),
        ({**EVALSCOPE, "subject": "{{ x"}, "does not fit the item"),
    ],
)
def test_what_a_library_cannot_give(items: dict[str, Any], said: str, mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as error:
        items_of(suite_of(tmp_path, items), mirror, tmp_path / "log", 2)
    assert error.value.found and error.value.mend and "items of" in error.value.asked
