"""Token ids beyond the embedding and sizes that cannot be: refused by the files alone, quickly, before anything is loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError

from .damage import WEIGHTS, edit_json

ROWS = 261


def add_token(directory: Path, text: str = "[NEW]", *, special: bool, number: int = ROWS) -> None:
    """To tokenizer.json, as `tokenizer.add_tokens` does."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": number, "content": text, "special": special, **flags})
    path.write_text(json.dumps(content))


def add_plain(directory: Path) -> None:
    add_token(directory, special=False)


def add_plain_in_another_file(directory: Path) -> None:
    (directory / "added_tokens.json").write_text(json.dumps({"[NEW]": ROWS}))


def add_plain_to_the_decoder(directory: Path) -> None:
    entry = {"content": "[NEW]", "special": False}
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder={str(ROWS): entry})


def add_bos(directory: Path) -> None:
    add_token(directory, special=True)
    edit_json(directory / "tokenizer_config.json", bos_token={"content": "[NEW]"})


def add_to_the_template(directory: Path) -> None:
    add_token(directory, special=True)
    (directory / "chat_template.jinja").write_text("{{ '[NEW]' + messages[0]['content'] }}")


def add_to_the_post_processor(directory: Path) -> None:
    add_token(directory, special=True)
    path = directory / "tokenizer.json"
    parts = [{"SpecialToken": {"id": "[NEW]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": parts, "pair": parts}
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": processor}))


ADDED = [add_plain, add_plain_in_another_file, add_plain_to_the_decoder, add_bos, add_to_the_template]


@pytest.mark.parametrize("add", [*ADDED, add_to_the_post_processor])
def test_a_token_that_texts_may_hold_has_a_row(llama_copy: Path, add: Any) -> None:
    add(llama_copy)
    with pytest.raises(CheckpointError, match="do not belong together") as caught:
        resolve(str(llama_copy))
    assert "'[NEW]' 261; embedding: 261 rows" in caught.value.found[0]
    assert "resize_token_embeddings" in caught.value.mend[1]


def test_a_special_token_that_no_text_is_given_is_let_through(
    llama_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_token(llama_copy, "[PAD]", special=True)
    assert resolve(str(llama_copy)).parameters > 0
    assert "special tokens that no text is given: '[PAD]' 261" in caplog.text


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"eos_token_id": 261}, "eos_token_id 261; embedding: 261 rows"),
        ({"eos_token_id": [999_999]}, "eos_token_id 999999"),
        ({"eos_token_id": -1}, "eos_token_id -1"),
        ({"bos_token_id": 300}, "bos_token_id 300"),
        ({"pad_token_id": 300}, "pad_token_id 300"),
        ({"eos_token_id": "<|end|>"}, '"<|end|>"; expected a whole number, or a list'),
        ({"eos_token_id": [0, "<|end|>"]}, "expected a whole number"),
        ({"eos_token_id": []}, "expected a whole number"),
        ({"eos_token_id": 1.5}, "1.5; expected"),
        ({"bos_token_id": True}, "true; expected a whole number"),
    ],
)
def test_stated_tokens_that_are_none(llama_copy: Path, file: str, stated: dict[str, Any], words: str) -> None:
    edit_json(llama_copy / file, **stated)
    with pytest.raises(CheckpointError) as caught:
        resolve(str(llama_copy))
    assert words in " ".join(caught.value.found) and file in str(caught.value)


@pytest.mark.parametrize(
    "stated", [{"pad_token_id": -1}, {"eos_token_id": [0, 5_000]}, {"eos_token_id": 50256}, {"eos_token_id": None}]
)
def test_stated_tokens_that_harm_nothing(llama_copy: Path, stated: dict[str, Any]) -> None:
    edit_json(llama_copy / "config.json", **stated)
    assert resolve(str(llama_copy)).parameters > 0


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 1e9},
        {"num_hidden_layers": 10**9, "quantization_config": {"quant_method": "fp8"}},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"intermediate_size": 10**9},
        {"num_experts": 1e12},
    ],
)
def test_absurd_sizes(llama_copy: Path, sizes: dict[str, Any], pickled: bool) -> None:
    """Built, they would fill the memory: transformers makes a list of the layers before it looks at anything."""
    edit_json(llama_copy / "config.json", **sizes)
    if pickled:
        (llama_copy / WEIGHTS).unlink()
        torch.save({}, llama_copy / "pytorch_model.bin")
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="do not belong together") as caught:
        resolve(str(llama_copy), allow_pickle=True)
    assert time.monotonic() - began < 5
    assert "config.json" in caught.value.found[0] and next(iter(sizes)) in str(caught.value)
