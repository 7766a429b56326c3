"""Documents into packed batches: several documents in a row, each with its own positions.

Follows GenDistill's packing with cross-document masking (arXiv 2603.26556, appendix B) in one representation:
`position_ids` that restart at 0 at every document. Attention, convolution and recurrent state must not cross a restart,
and no token is predicted from another document. Documents are never split; one longer than a row is refused.
A batch is a function of (stream, position), so training resumes at any position. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.tokenizer import ASSISTANT, BOS, EOS, PAD, UNKNOWN, USER
from suites.miniature.stream import Document


@dataclass(frozen=True, slots=True)
class Tokens:
    """One document as token ids; the first `prompt_tokens` of them are the prompt."""

    ids: list[int]
    prompt_tokens: int


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


class Encoder:
    """Documents to token ids, by a table of words: the same ids as the tokenizer's chat template, much faster."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._unknown = self._ids[UNKNOWN]
        self.pad_id = self._ids[PAD]

    def words(self, text: str) -> list[int]:
        """Ids of the words of a text."""
        return [self._ids.get(word, self._unknown) for word in text.split()]

    def document(self, document: Document) -> Tokens:
        """`<user> question <assistant> answer <eos>`, or `<bos> text <eos>` for a plain document."""
        answer = [*self.words(document.answer), self._ids[EOS]]
        if document.question:
            prompt = [self._ids[USER], *self.words(document.question), self._ids[ASSISTANT]]
        else:
            prompt = [self._ids[BOS]]
        return Tokens(prompt + answer, len(prompt))


def pack(
    fetch: Callable[[int], Tokens], position: int, *, rows: int, length: int, prompt_weight: float, pad_id: int
) -> Batch:
    """The batch that begins at document number `position`: first fit into `rows` rows, until a document fits in none.

    `prompt_weight` weighs the prediction of prompt tokens (1: all tokens count alike, 0: completions only).
    Raises ValueError on a document longer than `length` tokens.
    """
    filled: list[list[Tokens]] = [[] for _ in range(rows)]
    room = [length] * rows
    while True:
        document = fetch(position)
        size = len(document.ids)
        if size > length:
            raise ValueError(f"document {position} has {size} tokens, more than a row of {length}")
        row = next((r for r in range(rows) if room[r] >= size), None)
        if row is None:
            break
        filled[row].append(document)
        room[row] -= size
        position += 1
    input_ids = torch.full((rows, length), pad_id)
    position_ids = torch.zeros((rows, length), dtype=torch.int64)
    weights = torch.zeros((rows, length))
    for row, documents in enumerate(filled):
        start = 0
        for document in documents:
            end = start + len(document.ids)
            input_ids[row, start:end] = torch.tensor(document.ids)
            position_ids[row, start:end] = torch.arange(len(document.ids))
            weights[row, start + 1 : start + document.prompt_tokens] = prompt_weight
            weights[row, start + document.prompt_tokens : end] = 1.0
            start = end
        position_ids[row, start:] = torch.arange(length - start)
    tokens = rows * length - sum(room)
    return Batch(input_ids, position_ids, weights, position, tokens, int((weights > 0).sum()))
