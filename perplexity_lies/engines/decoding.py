"""One reply as it grows: the next token, when it ends, and what it says.

Knows nothing of models, batches or states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from perplexity_lies.engines.base import FinishReason, GenerateRequest, GenerateResult, Sampling

STOP_WINDOW_TOKENS = 16
"""A stop string is looked for in the text of this many last tokens, plus one for each of its characters."""


@dataclass(slots=True)
class Row:
    """One reply as it grows."""

    request: GenerateRequest
    prompt_ids: tuple[int, ...]
    truncated_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    """Tokens so far, the end token included."""
    finish_reason: FinishReason | None = None
    generator: torch.Generator | None = None
    smallest_margin: float | None = None

    def refused(self, why: str) -> GenerateResult:
        """The result of a row that could not be run."""
        return GenerateResult(
            key=self.request.key, text="", finish_reason="length", prompt_tokens=len(self.prompt_ids), completion_tokens=0,
            truncated_tokens=self.truncated_tokens, error=why,
        )  # fmt: skip


def next_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """One token from `logits` [vocabulary]: greedy, or temperature, then top-k, then top-p, as HF's warpers order them."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    scores = logits.float().cpu() / sampling.temperature
    if sampling.top_k > 0:
        floor = scores.topk(min(sampling.top_k, scores.numel())).values[-1]
        scores = scores.masked_fill(scores < floor, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(descending=False)
        drop = ordered.softmax(-1).cumsum(-1) <= 1.0 - sampling.top_p
        drop[-1] = False
        scores = scores.masked_fill(torch.zeros_like(drop).scatter(0, order, drop), -torch.inf)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row off `logits` [rows, vocabulary], by the row's own sampling.

    A greedy row remembers its narrowest choice.
    """
    greedy: list[int] = logits.argmax(-1).tolist()
    best, second = logits.topk(min(2, logits.shape[-1])).values.float().T[[0, -1]]
    for row, margin in zip(rows, (best - second).tolist(), strict=True):
        if row.request.sampling.temperature <= 0 and row.finish_reason is None:
            row.smallest_margin = margin if row.smallest_margin is None else min(margin, row.smallest_margin)
    return [
        greedy[i]
        if row.request.sampling.temperature <= 0
        else next_token(logits[i], row.request.sampling, row.generator)
        for i, row in enumerate(rows)
    ]


def decode_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of a reply, as evalscope's local inference decodes it."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Where the earliest stop string begins in `text`; -1 when none does."""
    return min((at for at in (text.find(s) for s in stop if s) if at >= 0), default=-1)


def advance(row: Row, token: int, tokenizer: Any, end_ids: frozenset[int], positions_end: int | None) -> None:
    """Add a token to a row and settle whether it is finished. No position at or beyond `positions_end` can be run."""
    row.ids.append(token)
    request = row.request
    if token in end_ids:
        row.finish_reason = "stop"
    elif request.stop:
        window = STOP_WINDOW_TOKENS + max(map(len, request.stop))
        if first_stop(decode_text(tokenizer, row.ids[-window:]), request.stop) >= 0:
            row.finish_reason = "stop_string"
    full = positions_end is not None and len(row.prompt_ids) + len(row.ids) >= positions_end
    if row.finish_reason is None and (full or len(row.ids) >= request.max_new_tokens):
        row.finish_reason = "length"


def result_of(row: Row, tokenizer: Any, context_tokens: int) -> GenerateResult:
    """The finished row as a result."""
    assert row.finish_reason is not None
    text = decode_text(tokenizer, row.ids)
    cut = first_stop(text, row.request.stop)
    return GenerateResult(
        key=row.request.key,
        text=text if cut < 0 else text[:cut],
        finish_reason=row.finish_reason,
        prompt_tokens=len(row.prompt_ids),
        completion_tokens=len(row.ids),
        truncated_tokens=row.truncated_tokens,
        smallest_margin=row.smallest_margin,
        beyond_context_tokens=max(0, len(row.prompt_ids) + len(row.ids) - context_tokens),
    )
