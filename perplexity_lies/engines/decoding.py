"""Autoregressive decoding of rows whose prompts have one length: no pad token, one cache, finished rows leave.

Knows nothing of checkpoints on disk or protocols. The cache is whatever the model returns; rows are taken out of it only
where it knows `batch_select_indices`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from perplexity_lies.engines.base import FinishReason, GenerateRequest, GenerateResult, Sampling
from perplexity_lies.engines.loading import LEARNED_POSITIONS

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


def decode_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of a reply, as evalscope's local inference decodes it."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Where the earliest stop string begins in `text`; -1 when none does."""
    return min((at for at in (text.find(s) for s in stop if s) if at >= 0), default=-1)


def advance(row: Row, token: int, tokenizer: Any, end_ids: frozenset[int]) -> None:
    """Add a token to a row and settle whether it is finished."""
    row.ids.append(token)
    request = row.request
    if token in end_ids:
        row.finish_reason = "stop"
    elif request.stop:
        window = STOP_WINDOW_TOKENS + max(map(len, request.stop))
        if first_stop(decode_text(tokenizer, row.ids[-window:]), request.stop) >= 0:
            row.finish_reason = "stop_string"
    if row.finish_reason is None and len(row.ids) >= request.max_new_tokens:
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
        beyond_context_tokens=max(0, len(row.prompt_ids) + len(row.ids) - context_tokens),
    )


@torch.inference_mode()
def decode_batch(
    model: Any, tokenizer: Any, rows: list[Row], end_ids: frozenset[int], context_tokens: int
) -> list[GenerateResult]:
    """Run rows of equal prompt length to their ends; results in the order of `rows`.

    A row of learned positions that reaches the end of its table is stopped there by `length`.
    """
    device = next(model.parameters()).device
    for row in rows:
        if row.request.sampling.temperature > 0:
            row.generator = torch.Generator().manual_seed(row.request.seed)
    names = inspect.signature(model.forward).parameters
    extra = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
    state = "cache_params" if "cache_params" in names else "past_key_values"
    positions_end = context_tokens if model.config.model_type in LEARNED_POSITIONS else None
    live = list(rows)
    input_ids = torch.tensor([row.prompt_ids for row in live], device=device)
    cache: Any = None
    while True:
        output = model(input_ids=input_ids, use_cache=True, **{state: cache}, **extra)
        cache = _cache_of(output)
        _advance_all(live, output.logits[:, -1, :], tokenizer, end_ids, positions_end)
        going = [i for i, row in enumerate(live) if row.finish_reason is None]
        if not going:
            break
        if len(going) < len(live) and hasattr(cache, "batch_select_indices"):
            cache.batch_select_indices(torch.tensor(going, device=device))
            live = [live[i] for i in going]
        input_ids = torch.tensor([[row.ids[-1]] for row in live], device=device)
    return [result_of(row, tokenizer, context_tokens) for row in rows]


def _advance_all(
    live: list[Row], logits: torch.Tensor, tokenizer: Any, end_ids: frozenset[int], positions_end: int | None
) -> None:
    greedy = logits.argmax(-1).tolist()
    for i, row in enumerate(live):
        if row.finish_reason is not None:
            continue
        sampling = row.request.sampling
        token = greedy[i] if sampling.temperature <= 0 else next_token(logits[i], sampling, row.generator)
        advance(row, token, tokenizer, end_ids)
        if row.finish_reason is None and positions_end is not None and len(row.prompt_ids) + len(row.ids) >= positions_end:
            row.finish_reason = "length"


def _cache_of(output: Any) -> Any:
    """The state to continue from: transformers names it differently for attention and for state-space models."""
    for name in ("past_key_values", "cache_params"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise TypeError(f"{type(output).__name__} carries no state to continue from")

