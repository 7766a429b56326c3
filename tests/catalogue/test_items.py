"""Items of a JSONL file: every letter kept, and a broken line named with what is wrong and an example."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.catalogue.items import Item, dump_items, read_items
from perplexity_lies.errors import UsageError

ITEM: dict[str, Any] = {"id": "a1", "question": "1 + 1 = ?", "choices": ["2", "3"], "gold": 0, "target": "2"}


def refusal(folder: Path, content: bytes) -> UsageError:
    (folder / "items.jsonl").write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_items(folder / "items.jsonl", "suite own.yaml, task 'sums'")
    assert error.value.found and error.value.mend
    return error.value


def bad(**changed: Any) -> bytes:
    return json.dumps({**ITEM, **changed}).encode()


BAD_ITEMS: dict[str, tuple[bytes, str]] = {
    "not_json": (b"{'id': 1}\n", "is not JSON"),
    "blank_line": (b"\n" + json.dumps(ITEM).encode() + b"\n", "is not JSON"),
    "list": (b"[]\n", "should be a mapping"),
    "number": (b"3\n", "should be a mapping"),
    "lacks_keys": (b'{"id": "a", "question": "q"}\n', "lacks `target`"),
    "lacks_gold": (b'{"id": "a", "question": "q", "target": "1", "choices": ["1", "2"]}\n', "`gold` must be an index"),
    "gold_alone": (b'{"id": "a", "question": "q", "target": "1", "gold": 0}\n', "index into 0 choices"),
    "second_id": ((json.dumps(ITEM) + "\n").encode() * 2, "'a1'"),
    "id_number": (bad(id=1), "id should be a string"),
    "id_empty": (bad(id=""), "id should have at least 1 character"),
    "id_spaces": (bad(id="a  b"), "`id` must have no spaces"),
    "one_choice": (bad(choices=["2"]), "`choices` must be two texts"),
    "target_empty": (bad(target=" "), "`target` is empty"),
    "choice_number": (bad(choices=[2, 3]), "choices[0] should be a string"),
    "choice_empty": (bad(choices=["2", ""]), "choices[1] should have at least 1 character"),
    "gold_beyond": (bad(gold=2), "`gold` must be an index into 2"),
    "gold_negative": (bad(gold=-1), "`gold` must be an index"),
    "gold_truth": (bad(gold=True), "gold should be an integer"),
    "subject_number": (bad(subject=4), "subject should be a string"),
    "half_a_surrogate": (b'{"id":"a","question":"\\ud800","choices":["1","2"],"gold":0,"target":"1"}', "surrogate"),
    "deep": (b"[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize("name", sorted(BAD_ITEMS))
def test_broken_item_is_named_by_its_line(tmp_path: Path, name: str) -> None:
    content, said = BAD_ITEMS[name]
    error = refusal(tmp_path, content)
    assert said in f"{error.asked}\n{error.found[0]}", str(error)
    assert ("items.jsonl:" if name == "second_id" else "items.jsonl:1") in error.asked and "'sums'" in error.asked
    assert name == "second_id" or '"question"' in error.mend[0]


@pytest.mark.parametrize(("content", "said"), [(b"", "holds no items"), (b"\xff\xfe\x00", "is not UTF-8 text")])
def test_items_file_without_items(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(tmp_path, content).asked


def test_items_keep_every_letter(tmp_path: Path) -> None:
    odd = {**ITEM, "question": "a\u2028b\r\n\x85 ", "target": "2024-01-01", "more": 1}
    (tmp_path / "i.jsonl").write_text(json.dumps(odd, ensure_ascii=False) + "\n", newline="")
    (item,) = read_items(tmp_path / "i.jsonl")
    assert (item.question, item.target, item.subject) == ("a\u2028b\r\n\x85 ", "2024-01-01", "")


def test_items_come_back_as_they_were_written(tmp_path: Path) -> None:
    odd = Item(id="a", question="a\u2028b\r\n\x85 ", choices=("1", " 2"), gold=1, target=" 2", subject="é")
    free = Item(id="b", question="", target="x")
    (tmp_path / "i.jsonl").write_text(dump_items([odd, free]))
    assert read_items(tmp_path / "i.jsonl") == [odd, free]
    assert json.loads(dump_items([odd]))["choices"] == ["1", " 2"] and dataclasses.asdict(free)["gold"] == -1
