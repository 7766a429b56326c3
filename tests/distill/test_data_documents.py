"""Documents by number: what the recipe names, in an order that depends on nothing but the number."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from distill.data import Encoder, Stream, Tokens, open_documents
from distill.data.documents import tokens_by_source
from distill.recipe.files import load_recipe
from distill.recipe.settings import DataConfig
from perplexity_lies.progress import Reporter
from suites.miniature.stream import make_document
from suites.miniature.world import make_world

MINIATURE = load_recipe("miniature").data
Open = Callable[..., Callable[[int], Tokens]]


def write(path: Path, word: str, count: int) -> DataConfig:
    """Documents of 2 to 12 tokens, told apart by a number in words."""
    texts = (" ".join([word, *str(number), *"abcdefghi"[: number % 10]]) for number in range(count))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return DataConfig(source=str(path), text="text")


@pytest.fixture
def data(tmp_path: Path) -> dict[str, DataConfig]:
    sources = {word: write(tmp_path / f"{word}.jsonl", word, count) for word, count in (("box", 400), ("cup", 300))}
    return {**sources, **MINIATURE}


@pytest.fixture
def opened(data: dict[str, DataConfig], tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Open:
    """`opened("box")` -> documents by number."""

    def make(shares: Any, **settings: Any) -> Callable[[int], Tokens]:
        defaults = {
            "seed": 1,
            "length": 32,
            "tokens_needed": 1000,
            "held_out": frozenset(),
            "cache": tmp_path / "cache",
        }
        settings = {"reporter": Reporter(quiet=True), **defaults, **settings}
        return open_documents(data, shares, tokenizer=tokenizer, **settings)

    return make


@pytest.mark.parametrize("name", ["all", "open", "chat"])
def test_the_miniature_world_is_its_own_stream(opened: Open, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    world, mixture, encoder = make_world(), MINIATURE[name].mixture, Encoder(tokenizer)
    assert mixture is not None
    asked = [make_document(world, mixture, 5, index, frozenset()).question for index in range(60)]
    held_out = frozenset(question for question in asked[:20] if question)
    documents = opened(name, seed=5, held_out=held_out)
    made = [make_document(world, mixture, 5, index, held_out) for index in range(60)]
    assert [documents(index) for index in range(60)] == [encoder.document(document) for document in made]
    assert held_out and not held_out & {document.question for document in made}


def test_every_epoch_holds_the_same_documents_in_another_order(opened: Open) -> None:
    documents = opened("box", tokens_needed=10**6)
    epochs = [[tuple(documents(epoch * 400 + index).ids) for index in range(400)] for epoch in range(2)]
    assert epochs[0] != epochs[1] and len(set(epochs[0])) == 400 and set(epochs[0]) == set(epochs[1])


def test_the_order_depends_on_the_seed_and_the_tokens_needed_alone(opened: Open, tmp_path: Path) -> None:
    first = opened("box")
    before = [first(index) for index in range(300)]
    assert before != [opened("box", seed=2)(index) for index in range(300)]
    opened("box", tokens_needed=10**6)  # the cache grows
    again, elsewhere = opened("box"), opened("box", cache=tmp_path / "elsewhere")
    assert before == [again(index) for index in range(300)] == [elsewhere(index) for index in range(300)]


def test_the_first_tokens_needed_are_what_is_read(opened: Open) -> None:
    documents = opened("box", tokens_needed=500)
    seen = {tuple(documents(index).ids): len(documents(index).ids) for index in range(400)}
    assert 500 <= sum(seen.values()) < 512


def test_data_that_run_out_are_read_again_and_it_is_said(opened: Open, capsys: pytest.CaptureFixture[str]) -> None:
    documents = opened("cup", tokens_needed=20_000, reporter=Reporter())
    said = capsys.readouterr().err
    tokens = sum(len(documents(index).ids) for index in range(300))
    assert f"data 'cup': 300 documents of {tokens:,} tokens from 300 rows" in said
    assert f"data 'cup' has less than 20,000 tokens: it is read {20_000 / tokens:.1f} times" in said
    opened("cup", reporter=Reporter())
    assert "times" not in capsys.readouterr().err


def test_shares_are_of_documents(opened: Open, tokenizer: PreTrainedTokenizerBase) -> None:
    documents = opened({"box": 1, "cup": 3, "chat": 4}, tokens_needed=5000)
    words = tokenizer.convert_ids_to_tokens([documents(index).ids[0] for index in range(800)])
    assert Counter(words) == {"box": 100, "cup": 300, "<user>": 400}


def test_shares_of_documents_become_tokens() -> None:
    tokens = tokens_by_source({"short": 10.0, "long": 90.0}, {"short": 0.5, "long": 0.5}, 1000)
    assert tokens == {"short": 100, "long": 900}
    assert tokens_by_source({"one": 7.5}, {"one": 2.0}, 1000) == {"one": 1000}


@pytest.mark.parametrize("shares", ["box", {"box": 0.3, "cup": 0.7}, {"cup": 0.5, "open": 0.5}])
def test_a_stream_cut_anywhere_continues_equally(opened: Open, shares: Any) -> None:
    def stream() -> Stream:
        return Stream(opened(shares, tokens_needed=1000), rows=3, length=128, prompt_weight=0.0, pad_id=0)

    positions, whole = [0], stream()
    for _ in range(20):
        positions.append(whole.batch(positions[-1]).next_position)
    assert positions[-1] > 300, "more than one epoch"
    for position, after in itertools.islice(itertools.pairwise(positions), 0, None, 4):
        one, other = whole.batch(position), stream().batch(position)
        assert one.next_position == other.next_position == after and one.tokens == other.tokens
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.weights, other.weights)
