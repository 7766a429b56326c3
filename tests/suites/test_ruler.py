"""RULER's items: frozen, as long as they say, answerable from their own text, the same for every checkpoint."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.catalogue.mirror import Mirror, open_mirror
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.extract import open_extractor
from perplexity_lies.extract.string_match import references
from perplexity_lies.record.records import ItemRecord, Reading, Status
from suites.long.catalogue import FILE, text
from suites.long.length import tokens
from suites.long.needles import HUNTS
from suites.long.ruler import DATASETS, LENGTHS, LISTS, REPLY_TOKENS, ruler_items

from .looking_up import look_up

SUITE = load_suite("long")
TASKS = {task.name: task for task in SUITE.tasks}
OWN = [task for task in REPLY_TOKENS if task not in DATASETS]
DIGESTS = {
    "niah_single_1": "b210773f459565cc",
    "niah_multikey_2": "ec2a4a9f5e96fe62",
    "niah_multikey_3": "a6d2501a1d51b39e",
    "vt": "5ef3a231625fa701",
    "cwe": "c33ed22a91e61c10",
    "fwe": "8bdecfae85c37465",
}
"""sha256 of the first three items at 4,096, edition 1."""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    """Small data sets of the schemas that RULER's tasks read, made here."""
    hub = tmp_path_factory.mktemp("hub")
    rng = random.Random(0)
    sentences = [
        f"Sentence {i} says {rng.choice(['little', 'much', 'nothing'])} of {rng.random():.3f}." for i in range(400)
    ]
    write_rows(
        hub / "baber/paul_graham_essays/train.jsonl", [{"text": " ".join(sentences)}, {"text": "One. Two? Three!"}]
    )
    squad = [
        {
            "id": str(i), "title": f"t{i % 5}", "context": f"Town {i} lies on the river {name(i)}. " * 6,
            "question": f"On which river does town {i} lie?", "answers": {"text": [name(i)] * 2, "answer_start": [1, 1]},
        }
        for i in range(40)
    ] + [
        {"id": "none", "title": "t1", "context": "Nothing.", "question": "Who?", "answers": {"text": [], "answer_start": []}}
    ]  # fmt: skip
    write_rows(hub / "rajpurkar/squad_v2/validation.jsonl", squad)
    hotpot = [
        {
            "_id": str(i), "answer": "yes" if i % 7 == 0 else name(i), "question": f"Which river is number {i}?",
            "context": [[f"Rivers {i}", [f"Number {i} is {name(i)}.", " It is long."]], [f"Hills {i}", ["Green. " * 20]]],
        }
        for i in range(40)
    ]  # fmt: skip
    (hub / "ruler/inputs").mkdir(parents=True)
    (hub / "ruler/inputs/hotpot_dev_distractor_v1.json").write_text(json.dumps(hotpot))
    return Mirror(hub)


def name(number: int) -> str:
    return "".join("bcdfghklmn"[int(digit)] + "a" for digit in f"{number:04d}").capitalize()


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(task: str, length: int, mirror: Mirror, limit: int) -> Any:
    source = TASKS[f"{task}_{length}"].items
    assert source is not None
    return source.load(mirror, limit)


def score(task: str, item: Any, reply: str) -> float:
    """What the task's own extractor gives a reply."""
    settings: Any = TASKS[f"{task}_4096"].rungs["generation"]
    none = Reading(extractor="none", status=Status.SCORED, score=0.0, metric="none")
    record = ItemRecord(
        task=task, item=item.id, rung="generation", prompt="", prompt_sha256="", gold=item.target, readings=(none,),
        text=reply, finish_reason="stop", token_ids=(1,),
    )  # fmt: skip
    return open_extractor(settings.judge).read(record).score


def test_the_suite_file_is_written_from_the_table() -> None:
    assert FILE.read_text(encoding="utf-8") == text()
    assert len(SUITE.tasks) == 13 * 6 and set(SUITE.datasets) == set(DATASETS.values())
    assert all(TASKS[f"{task}_{length}"].length_tokens == length for task in REPLY_TOKENS for length in LENGTHS)


@pytest.mark.parametrize("task", list(DIGESTS))
def test_items_of_an_edition_never_change(task: str) -> None:
    random.seed(hash(task))
    found = [item for item, _ in zip(ruler_items(task, 4096), range(3), strict=False)]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == DIGESTS[task]
    again = ruler_items(task, 4096, count=2)
    assert [*again] == found[:2], "neither the count nor what else draws numbers changes an item"


@pytest.mark.parametrize("task", list(REPLY_TOKENS))
def test_a_prompt_is_as_long_as_it_says(task: str, mirror: Mirror) -> None:
    for length in (4096, 16384):
        for item in load(task, length, mirror, 2):
            whole = tokens(item.question) + REPLY_TOKENS[task]
            assert whole <= length, "fits"
            if task not in ("fwe", "qa_1", "qa_2"):
                assert whole > 0.97 * length, "and is full"
            assert len(set(item.choices)) == 4 and item.question == item.question.strip()
            assert set(references(item.target)) <= {item.choices[item.gold], *references(item.target)}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", [*HUNTS, *LISTS])
def test_an_oracle_that_looks_up_the_prompt_is_always_right(task: str, length: int, mirror: Mirror) -> None:
    for item in load(task, length, mirror, 1 if length > 16384 else 3):
        found = look_up(item.question)
        assert score(task, item, ", ".join(found)) == 1.0
        right = item.choices[item.gold]
        assert all(value in right for value in references(item.target)), "the right choice holds every reference"
        for wrong in set(item.choices) - {right}:
            assert score(task, item, wrong) < 1.0
        noise = random.Random(item.id)
        guess = " ".join(str(noise.randrange(10**6, 10**7)) for _ in range(8))
        assert score(task, item, guess) == 0.0, "a random answerer finds nothing"


@pytest.mark.parametrize("task", list(HUNTS))
def test_depths_walk_over_the_text(task: str, mirror: Mirror) -> None:
    for item in load(task, 4096, mirror, 5):
        depth = int(item.id.split("@")[1])
        needle = references(item.target)[0]
        start = item.question.index("\n") + 1
        span = item.question.rindex("\n") - start
        at = 100 * (item.question.index(f": {needle}.") - start) / span
        assert abs(at - depth) < 6, "the needle stands where the item's name says"
    found = {int(item.id.split("@")[1]) for item in load(task, 4096, mirror, 5)}
    assert max(found) - min(found) > 60 and len(found) == 5


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_the_answer_is_in_the_documents(task: str, mirror: Mirror) -> None:
    items = load(task, 4096, mirror, 40)
    assert len(items) == 40
    for item in items:
        right = references(item.target)[0]
        assert right in item.question or right == "yes"
        assert item.choices[item.gold] == right and (right != "yes" or "no" in item.choices)
    assert len({item.question for item in items}) == 40


def test_nothing_of_a_tokenizer_enters_the_items(mirror: Mirror) -> None:
    """The suite is read without a checkpoint: two that differ get the same bytes (`test_long_runs` asks two)."""
    one, other = (load("niah_multikey_1", 8192, mirror, 2) for _ in range(2))
    assert one == other and load_suite("long").digest == SUITE.digest


def test_the_length_rule() -> None:
    assert tokens("The grass is green.") == 5
    assert tokens("8231904") == 7 and tokens("a\n\nb") == 4 and tokens("snake_case") == 3
    assert tokens("internationalization") == 3 and tokens("qwzxyk", letters=2) == 3


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({"task": "niah_single_9", "length": 4096}, "no task 'niah_single_9'"),
        ({"task": "niah_single_1", "length": 100}, "a length is"),
        ({"task": "niah_single_1", "length": "4096"}, "a length is"),
        ({"task": "niah_single_2", "length": 4096}, "add `dataset: baber/paul_graham_essays`"),
        ({"task": "niah_single_1", "length": 4096, "edition": 2}, "no edition 2"),
    ],
)
def test_settings_that_cannot_be_used_are_told_when_the_suite_is_read(
    items: dict[str, Any], said: str, tmp_path: Path
) -> None:
    whole = {"generator": "ruler", "edition": 1, **items}
    task = {"name": "a", "items": whole, "judge": "string_match_all", "max_new_tokens": 4, "rungs": ["generation"]}
    task["generation"] = {"metric": "string_match_all"}
    (tmp_path / "own.yaml").write_text(json.dumps({"name": "own", "tasks": [task]}))
    with pytest.raises(UsageError) as error:
        load_suite(tmp_path / "own.yaml")
    assert said in str(error.value)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "baber/paul_graham_essays").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be read"):
        load("niah_single_2", 4096, Mirror(tmp_path), 1)
    with pytest.raises(MissingError, match="baber/paul_graham_essays"):
        load("niah_single_2", 4096, open_mirror(None), 1)
