"""Documents into packed batches: several documents in a row, each with its own positions.

Follows GenDistill's packing with cross-document masking (arXiv 2603.26556, appendix B) in one representation:
`position_ids` that restart at 0 at every document. Attention, convolution and recurrent state must not cross a restart,
and no token is predicted from another document. A document never crosses rows; one longer than a row is refused.
A batch is a function of (stream, position), so training can resume at any position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """One document as token ids, and which of them are completions: at least one after the first token."""

    ids: list[int]
    completions: tuple[tuple[int, int], ...]
    """Half-open spans of `ids`, in order; a conversation has one for every assistant turn. The rest is prompt."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows. All tensors are [rows, length]."""

    input_ids: Tensor
    """int64"""
    position_ids: Tensor
    """int64; restarts at 0 at every document, and once more where padding begins."""
    weights: Tensor
    """float32; weight of predicting the token at this position. 0 at document starts and at padding."""
    next_position: int
    """Number of the first document that is not in this batch."""
    tokens: int
    """Tokens of documents, without padding."""
    loss_tokens: int
    """Positions with a weight above zero."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "weights")}
        return replace(self, **tensors)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop`: the part of a process, or a micro-batch."""
        part = slice(start, stop)
        return counted(self.input_ids[part], self.position_ids[part], self.weights[part], self.next_position)

    def parts(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows; 0 = the whole batch."""
        total = len(self.input_ids)
        for start in range(0, total, rows or total):
            yield self.rows(start, min(total, start + (rows or total)))


def counted(input_ids: Tensor, position_ids: Tensor, weights: Tensor, next_position: int) -> Batch:
    """The batch with its counts. Padding: from a row's last restart on, when nothing there has a weight."""
    length = input_ids.shape[1]
    from_end = (position_ids == 0).flip(1).int().argmax(1, keepdim=True)
    last = torch.arange(length, device=input_ids.device) >= length - 1 - from_end
    padded = ~((weights > 0) & last).any(1, keepdim=True)
    tokens = input_ids.numel() - int((last & padded).sum())
    return Batch(input_ids, position_ids, weights, next_position, tokens, int((weights > 0).sum()))


def weigh(document: Tokens, prompt_weight: float) -> list[float]:
    """Weight of predicting each token of a document, [len(ids)]; 0 for the first, which nothing predicts."""
    weights = [prompt_weight] * len(document.ids)
    for start, end in document.completions:
        weights[start:end] = [1.0] * (end - start)
    weights[0] = 0.0
    return weights


def pack(
    documents: Callable[[int], Tokens], position: int, *, rows: int, length: int, prompt_weight: float, pad_id: int
) -> Batch:
    """The batch that begins at document number `position`: first fit into `rows` rows, until a document fits in none.

    `prompt_weight`: weight of prompt tokens (1: all tokens count alike, 0: completions only).
    Raises ValueError on a document longer than `length` tokens.
    """
    input_ids = np.full((rows, length), pad_id, dtype=np.int64)
    position_ids = np.zeros((rows, length), dtype=np.int64)
    weights = np.zeros((rows, length), dtype=np.float32)
    filled = [0] * rows
    while True:
        document = documents(position)
        size = len(document.ids)
        if size > length:
            raise ValueError(f"document {position} has {size} tokens, more than a row of {length}")
        row = next((row for row in range(rows) if length - filled[row] >= size), None)
        if row is None:
            break
        place = slice(filled[row], filled[row] + size)
        input_ids[row, place] = document.ids
        position_ids[row, place] = np.arange(size)
        weights[row, place] = weigh(document, prompt_weight)
        filled[row] += size
        position += 1
    for row, end in enumerate(filled):
        position_ids[row, end:] = np.arange(length - end)
    return counted(torch.from_numpy(input_ids), torch.from_numpy(position_ids), torch.from_numpy(weights), position)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stage's source of batches, and their shape."""

    documents: Callable[[int], Tokens]
    """Document number -> tokens."""
    rows: int
    """Rows of one optimiser step, all processes together."""
    length: int
    """Tokens per row."""
    prompt_weight: float
    pad_id: int

    def batch(self, position: int) -> Batch:
        """The whole batch of the optimiser step that begins at document number `position`, and depends on it alone."""
        return pack(
            self.documents,
            position,
            rows=self.rows,
            length=self.length,
            prompt_weight=self.prompt_weight,
            pad_id=self.pad_id,
        )
