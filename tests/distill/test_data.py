"""Packing: every document once, whole, in order; positions, weights and the next position say so."""

from __future__ import annotations

import random

import pytest
import torch

from distill.data import Tokens, pack

PAD = 0


def documents(seed: int, longest: int) -> list[Tokens]:
    rng = random.Random(seed)
    made = []
    for number in range(90):
        size = rng.randint(2, longest)
        made.append(Tokens([1000 + number] * size, rng.randint(1, size - 1)))
    return made


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prompt_weight", [0.0, 0.1, 1.0])
def test_batches_hold_every_document_once(seed: int, prompt_weight: float) -> None:
    source, position, seen, tokens, scored = documents(seed, 9), 0, [], 0, 0
    while position < 50:
        batch = pack(source.__getitem__, position, rows=3, length=16, prompt_weight=prompt_weight, pad_id=PAD)
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
                expected = [0.0] + [prompt_weight] * (document.prompt_tokens - 1)
                expected += [1.0] * (len(ids) - document.prompt_tokens)
                torch.testing.assert_close(weights, torch.tensor(expected))
                found.append(ids[0] - 1000)
        assert sorted(found) == list(range(position, batch.next_position))
        assert batch.tokens == sum(len(source[i].ids) for i in found)
        assert batch.loss_tokens == int((batch.weights > 0).sum())
        seen += sorted(found)
        tokens, scored, position = tokens + batch.tokens, scored + batch.loss_tokens, batch.next_position
    assert seen == list(range(len(seen))) and tokens > scored > 0


def test_a_batch_depends_on_its_position_only() -> None:
    source = documents(1, 9)
    first = pack(source.__getitem__, 0, rows=2, length=16, prompt_weight=1.0, pad_id=PAD)
    one, two = (
        pack(source.__getitem__, first.next_position, rows=2, length=16, prompt_weight=1.0, pad_id=PAD)
        for _ in range(2)
    )
    assert torch.equal(one.input_ids, two.input_ids) and torch.equal(one.weights, two.weights)


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="document 0 has 17 tokens, more than a row of 16"):
        pack(lambda index: Tokens([5] * 17, 3), 0, rows=2, length=16, prompt_weight=1.0, pad_id=PAD)
