"""Packing: every document once, whole, in order; positions, weights and the next position say so."""

from __future__ import annotations

import random

import pytest
import torch

from distill.data import Batch, Stream, Tokens

PAD = 0


def random_spans(rng: random.Random, size: int) -> tuple[tuple[int, int], ...]:
    """One to three spans of completions, the last of which reaches beyond the first token."""
    edges = sorted(rng.sample(range(size + 1), 2 * rng.randint(1, min(3, (size + 1) // 2))))
    spans = tuple(zip(edges[::2], edges[1::2], strict=True))
    return spans if spans[-1][1] > 1 else ((0, size),)


def documents(seed: int, longest: int) -> list[Tokens]:
    rng = random.Random(seed)
    sizes = [rng.randint(2, longest) for _ in range(90)]
    return [Tokens([1000 + number] * size, random_spans(rng, size)) for number, size in enumerate(sizes)]


def stream_of(source: list[Tokens], *, rows: int = 2, length: int = 16, prompt_weight: float = 1.0) -> Stream:
    return Stream(source.__getitem__, rows, length, prompt_weight, PAD)


def same(one: Batch, other: Batch) -> bool:
    tensors = ("input_ids", "position_ids", "weights")
    counts = (one.next_position, one.tokens, one.loss_tokens) == (other.next_position, other.tokens, other.loss_tokens)
    return counts and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def expected_weights(document: Tokens, prompt_weight: float) -> list[float]:
    """The definition: 1 in a completion, else the prompt's weight; nothing predicts a document's first token."""
    inside = [any(a <= t < b for a, b in document.completions) for t in range(len(document.ids))]
    return [0.0] + [1.0 if inside[t] else prompt_weight for t in range(1, len(document.ids))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prompt_weight", [0.0, 0.1, 1.0])
def test_batches_hold_every_document_once(seed: int, prompt_weight: float) -> None:
    source, position, seen, tokens, scored = documents(seed, 9), 0, [], 0, 0
    stream = stream_of(source, rows=3, prompt_weight=prompt_weight)
    while position < 50:
        batch = stream.batch(position)
        found = []
        for row in range(3):
            starts = [t for t in range(16) if batch.position_ids[row, t] == 0]
            for start, end in zip(starts, [*starts[1:], 16], strict=True):
                ids = batch.input_ids[row, start:end].tolist()
                assert batch.position_ids[row, start:end].tolist() == list(range(end - start))
                weights = batch.weights[row, start:end]
                if ids[0] == PAD:
                    assert set(ids) == {PAD} and (weights == 0).all() and end == 16
                    continue
                document = source[ids[0] - 1000]
                assert ids == document.ids
                torch.testing.assert_close(weights, torch.tensor(expected_weights(document, prompt_weight)))
                found.append(ids[0] - 1000)
        assert sorted(found) == list(range(position, batch.next_position))
        assert batch.tokens == sum(len(source[i].ids) for i in found)
        assert batch.loss_tokens == int((batch.weights > 0).sum())
        seen += sorted(found)
        tokens, scored, position = tokens + batch.tokens, scored + batch.loss_tokens, batch.next_position
    assert seen == list(range(len(seen))) and tokens > scored > 0


def test_rows_of_a_batch_add_up_to_it() -> None:
    source = documents(3, 9)
    position = 0
    while position < 60:
        batch = stream_of(source, rows=5, prompt_weight=0.0).batch(position)
        parts = [batch.rows(start, start + 1) for start in range(5)]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), batch.input_ids)
        assert torch.equal(torch.cat([part.weights for part in parts]), batch.weights)
        for part in parts:
            assert part.tokens == int((part.input_ids != PAD).sum()) and part.next_position == batch.next_position
            assert part.loss_tokens == int((part.weights > 0).sum())
        assert sum(part.tokens for part in parts) == batch.tokens
        position = batch.next_position
    whole = stream_of(source, rows=5).batch(0)
    assert same(whole.rows(0, 5), whole)


def test_a_row_without_padding_and_a_row_of_padding_are_counted() -> None:
    source = [Tokens([5] * 16, ((4, 16),)), Tokens([6] * 16, ((4, 16),)), Tokens([7] * 16, ((4, 16),))]
    full = stream_of(source).batch(0)
    assert (full.tokens, full.next_position, full.loss_tokens) == (32, 2, 30)
    empty = Batch(full.input_ids, full.position_ids, torch.zeros(2, 16), 0, 0, 0)
    assert empty.rows(0, 1).tokens == 0


def test_a_batch_depends_on_its_position_only() -> None:
    source = documents(1, 9)
    position = stream_of(source).batch(0).next_position
    assert same(stream_of(source).batch(position), stream_of(source).batch(position))


def test_a_batch_moves_with_its_counts() -> None:
    batch = stream_of(documents(1, 9)).batch(0)
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.position_ids.device.type, moved.weights.device.type} == {"meta"}
    assert (moved.next_position, moved.tokens) == (batch.next_position, batch.tokens) and same(batch.to("cpu"), batch)


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="document 0 has 17 tokens, more than a row of 16"):
        stream_of([Tokens([5] * 17, ((3, 17),))]).batch(0)
