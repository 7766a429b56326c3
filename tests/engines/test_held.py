"""Constrained decoding: every tokenisation of a label is open, nothing else, and the likeliest allowed token is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, GenerateResult
from perplexity_lies.engines.held import Held, Spelling


class Pieces:
    """A tokenizer of these pieces, one id each; its own tokens of a text are the longest pieces first."""

    all_special_ids = (0,)

    def __init__(self, *pieces: str) -> None:
        self.pieces = ("<end>", *pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(self.pieces[token] for token in ids)

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return [self.decode(row) for row in rows]

    def encode(self, text: str, **_: Any) -> list[int]:
        ids = []
        while text:
            piece = max((piece for piece in self.pieces[1:] if text.startswith(piece)), key=len)
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return ids


def spelt(held: Held, tokenizer: Pieces, end: int = 0) -> set[tuple[str, ...]]:
    """Every reply that the constraint lets through, as pieces."""
    found, waiting = set(), [[]]  # type: ignore[var-annotated]
    while waiting:
        ids = waiting.pop()
        for token in held.allowed(ids):
            grown = [*ids, token]
            if token == end or held.ended(grown):
                found.add(tuple(tokenizer.pieces[t] for t in grown if t != end))
            else:
                waiting.append(grown)
    return found


def test_every_tokenisation_of_a_label_is_open_and_nothing_else() -> None:
    tokenizer = Pieces("x", "A", " A", " ", "B", "AB", "y", "Ax")
    found = spelt(Held(("A", "B"), Spelling(tokenizer, 99), {0}), tokenizer)
    assert found == {("A",), (" A",), (" ", "A"), ("B",), (" ", "B")}


def test_a_label_that_begins_another_one_ends_at_an_end_token() -> None:
    tokenizer = Pieces("x", "1", "10", "0", " ")
    held = Held(("1", "10"), Spelling(tokenizer, 99), {0})
    assert spelt(held, tokenizer) == {
        ("1",), ("10",), ("1", "0"), (" ", "1"), (" ", "10"), (" ", "1", "0")
    }  # fmt: skip
    assert not held.ended([tokenizer.pieces.index("1")])
    assert 0 in held.allowed([tokenizer.pieces.index("1")])


def one(engine: Any, request: GenerateRequest) -> GenerateResult:
    (result,) = [result for batch in engine.generate([request]) for result in batch]
    return result


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Any:
    return open_engine("torch", resolve(str(tiny_checkpoint("llama", chat_template=True))), EngineOptions(device="cpu"))


CHOICES = ("fig", "figs", "pear", "é")


def slow(engine: Any, prompt: str, choices: tuple[str, ...], most: int) -> tuple[str, float]:
    """The definition: run the whole sequence for each token, leave only bytes that go on towards a choice."""
    ids, reply = engine.encode(prompt, True), b""
    texts = [text.encode() for choice in choices for text in (choice, f" {choice}")]
    single = {engine.tokenizer.decode([t]).encode(): t for t in range(len(engine.tokenizer))}
    byte_of = {t: text for text, t in single.items() if len(text) == 1}
    for text in texts:  # bytes that are no character alone
        for byte, token in zip(text, engine.tokenizer.encode(text.decode(), add_special_tokens=False), strict=True):
            byte_of[token] = bytes([byte])
    mass = 0.0
    for step in range(most):
        with torch.inference_mode():
            logits = engine.model(torch.tensor([ids])).logits[0, -1]
        allowed = [t for t, byte in byte_of.items() if any(text.startswith(reply + byte) for text in texts)]
        if reply in texts:
            if not allowed:
                break
            allowed += list(engine.end_ids)
        if step == 0:
            mass = float(logits.softmax(-1)[allowed].sum())
        token = max(allowed, key=lambda t: float(logits[t]))
        if token in engine.end_ids:
            break
        ids, reply = [*ids, token], reply + byte_of[token]
    return reply.decode(), mass


@pytest.mark.parametrize("prompt", ["Answer:", "fruit of ada ?", "é"])
def test_the_engine_takes_the_likeliest_allowed_token_each_time(engine: Any, prompt: str) -> None:
    result = one(engine, GenerateRequest(prompt=prompt, add_special_tokens=True, max_new_tokens=9, choices=CHOICES))
    text, mass = slow(engine, prompt, CHOICES, 9)
    assert result.text == text
    assert result.text.strip() in CHOICES
    assert result.choices_mass == pytest.approx(mass, rel=1e-4)
    assert result.finish_reason == "stop"


def test_a_free_row_beside_a_held_one_is_as_it_is_alone(engine: Any) -> None:
    free = GenerateRequest(prompt="Answer:", add_special_tokens=True, max_new_tokens=9)
    held = GenerateRequest(prompt="Answer:", add_special_tokens=True, max_new_tokens=9, choices=("A", "B"))
    assert free.key != held.key
    together = {result.key: result for batch in engine.generate([free, held]) for result in batch}
    assert together[free.key].token_ids == one(engine, free).token_ids
    assert together[held.key].text.strip() in ("A", "B")
    assert together[free.key].choices_mass is None
