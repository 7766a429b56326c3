"""Stop strings: special tokens among them, across the borders of tokens, in every way of decoding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, GenerateResult
from perplexity_lies.engines.decoding import decode_all, decode_text, holds_stop, special_texts, text_before_stop
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.run import evaluate

END, BEGIN, USER = 0, 1, 2
"""Ids of `<|end|>`, `<|begin|>` and `<|user|>` in the tiny checkpoints; every byte is a token of its own."""


@pytest.fixture(params=["in slots", "by length"])
def engine(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path]) -> TorchEngine:
    """An engine without end tokens that often says a special token."""
    found = TorchEngine(resolve(str(tiny_checkpoint("qwen3"))), EngineOptions(device="cpu", slots=3))
    found.why_not_slots = "" if request.param == "in slots" else "not wanted here"
    found.end_ids = frozenset()
    found.model.get_output_embeddings().weight.data[USER] *= 3
    return found


def ask(engine: TorchEngine, stop: tuple[str, ...] = (), tokens: int = 40) -> dict[str, GenerateResult]:
    prompts = ["Hello there", "two\nlines", "a", "Hello again", "of another length", "What is it?"]
    asked = [
        GenerateRequest(prompt=prompt, add_special_tokens=True, max_new_tokens=tokens, stop=stop) for prompt in prompts
    ]
    results = {result.key: result for batch in engine.generate(asked) for result in batch}
    return {request.prompt: results[request.key] for request in asked}


def test_a_special_token_is_a_stop_string(engine: TorchEngine) -> None:
    """As HF `generate(stop_strings=...)` stops, with the text before it."""
    free, stopped, met = ask(engine), ask(engine, ("<|user|>",)), 0
    for prompt, result in stopped.items():
        ids = torch.tensor([engine.encode(prompt, True)])
        with torch.no_grad():
            whole = engine.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=[],
                pad_token_id=0, stop_strings=["<|user|>"], tokenizer=engine.tokenizer,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert list(result.token_ids) == whole
        assert result.text == engine.tokenizer.decode(whole, skip_special_tokens=True)
        if USER in free[prompt].token_ids:
            assert result.finish_reason == "stop_string" and result.token_ids[-1] == USER
            met += 1
        else:
            assert result.finish_reason == "length"
    assert met > 1


def test_a_stop_string_may_begin_or_end_inside_special_tokens(engine: TorchEngine) -> None:
    free = {p: r for p, r in ask(engine).items() if USER in r.token_ids[2:-2]}
    assert free
    for prompt, result in free.items():
        at = result.token_ids.index(USER, 2)
        around = decode_all(engine.tokenizer, result.token_ids[at - 1 : at + 2])
        if "\ufffd" in around:
            continue
        into = around.index("ser|>")
        for stop in (around, around[1:], around[:-1], "|user", around[into : into + 6]):
            found = ask(engine, (stop,))[prompt]
            assert found.finish_reason == "stop_string", stop
            raw = decode_all(engine.tokenizer, found.token_ids)
            assert stop in raw and stop not in decode_all(engine.tokenizer, found.token_ids[:-1])
            assert found.text == raw[: raw.index(stop)].replace("<|user|>", "").removesuffix("<|u").removesuffix("<")


def test_an_end_token_that_is_also_a_stop_string_ends_a_reply_once(engine: TorchEngine) -> None:
    engine.end_ids = frozenset([USER])
    plain, named = ask(engine), ask(engine, ("<|user|>",))
    for prompt, result in plain.items():
        assert replace(named[prompt], key=result.key) == result


class Pieces:
    """A tokenizer of given pieces, of which some are special."""

    def __init__(self, pieces: list[str], special: set[int]) -> None:
        self.pieces, self.special = pieces, special

    def decode(self, ids: list[int], skip_special_tokens: bool, **_: Any) -> str:
        return "".join(self.pieces[i] for i in ids if not (skip_special_tokens and i in self.special))


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("<eos>",), "I see. "),
        ((". <eos>",), "I see"),
        (("e. ",), "I se"),
        (("<eos>", "see"), "I "),
        (("os>no",), "I see. "),
        (("I see. no",), ""),
        (("nothing",), "I see. no<eos>"),
        (("no<e",), "I see. "),
        ((), "I see. no<eos>"),
    ],
)
def test_the_text_before_a_stop(stop: tuple[str, ...], text: str) -> None:
    """The last piece is spelled as the special token is, and none."""
    tokenizer = Pieces(["<think>", "I s", "ee. ", "<eos>", "no", "<eos>"], {0, 3})
    ids = [0, 1, 2, 3, 4, 5]
    assert decode_text(tokenizer, ids) == "I see. no<eos>"
    assert text_before_stop(tokenizer, ids, stop) == text
    assert holds_stop(tokenizer, ids, stop) == (bool(stop) and stop != ("nothing",))


def test_special_tokens_of_every_kind_are_known(tiny_llama: Path) -> None:
    tokenizer = TorchEngine(resolve(str(tiny_llama)), EngineOptions(device="cpu")).tokenizer
    assert set(special_texts(tokenizer)) >= {"<|end|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|system|>"}


def test_stops_of_a_suite_end_replies(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """From a suite's `stop:` to the record, for a checkpoint whose config names another end token than the one it says."""
    path = Path(shutil.copytree(tiny_checkpoint("qwen3"), tmp_path / "checkpoint"))
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"][USER] *= 3
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    items = [{"id": f"q{i}", "question": f"What is {i} of {i}?", "target": "2"} for i in range(6)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = {}
    for name, stop in (("free", ""), ("stopped", '    stop: ["<|user|>"]\n')):
        suite = tmp_path / f"{name}.yaml"
        suite.write_text(
            f"name: {name}\ntasks:\n  - name: t\n    items: items.jsonl\n    extract: '(.*)'\n    max_new_tokens: 24\n"
            f"    rungs: [generation]\n{stop}"
        )
        run = evaluate(str(path), suite=suite, out=tmp_path / "out", quiet=True)
        found[name] = {r.item: r for r in run.records([run.records_path("t", "generation")])}
    stopped = 0
    for item, record in found["stopped"].items():
        free = found["free"][item]
        if USER in free.token_ids:
            cut = free.token_ids[: free.token_ids.index(USER) + 1]
            assert record.finish_reason == "stop_string" and record.token_ids == cut
            assert free.text.startswith(record.text) and "<|user|>" not in record.text
            stopped += 1
        else:
            assert record.text == free.text
    assert stopped
