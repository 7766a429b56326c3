"""One reply while it is generated: choose the next token, decide whether the reply has ended, turn it into a result.

`choose` picks a token for each row off the logits, `advance` adds it to its row, `result_of` makes the result of a row that has
ended. Sampling follows the order of HF's warpers: temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from perplexity_lies.engines.base import FinishReason, GenerateRequest, GenerateResult, Sampling
from perplexity_lies.engines.held import Held

STOP_WINDOW_TOKENS = 16
"""Stop strings are searched in the text of the last STOP_WINDOW_TOKENS + (characters of the longest stop string) tokens."""


@dataclass(slots=True)
class Row:
    """A reply while it is generated."""

    request: GenerateRequest
    prompt_ids: tuple[int, ...]
    truncated_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    """Tokens generated so far, the end token included."""
    finish_reason: FinishReason | None = None
    """None until the reply has ended."""
    generator: torch.Generator | None = None
    """The row's own, for a sampled row."""
    smallest_margin: float | None = None
    """Smallest lead of a greedy token over the second best so far, in logits."""
    held: Held | None = None
    """What a constrained reply is held to."""
    choices_mass: float | None = None
    """Probability of all tokens that were allowed first, of a constrained reply."""

    def refused(self, why: str, context_tokens: int) -> GenerateResult:
        """The result of a row that cannot be run, with the reason."""
        return GenerateResult(
            key=self.request.key, text="", finish_reason="length", prompt_tokens=len(self.prompt_ids), completion_tokens=0,
            truncated_tokens=self.truncated_tokens, error=why,
            beyond_context_tokens=max(0, len(self.prompt_ids) - context_tokens),
        )  # fmt: skip


def next_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """One token off `logits` [vocabulary]: the greedy one at temperature 0, else one drawn by `generator`."""
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
    """The next token of each row off `logits` [rows, vocabulary], by that row's sampling.

    Updates `smallest_margin` of greedy rows that have not ended.
    """
    greedy: list[int] = logits.argmax(-1).tolist()
    best, second = logits.topk(min(2, logits.shape[-1])).values.float().T[[0, -1]]
    for i, row in enumerate(rows):
        if row.held is not None and row.finish_reason is None:
            greedy[i], best[i], second[i] = _held_token(logits[i], row)
    for row, margin in zip(rows, (best - second).tolist(), strict=True):
        if row.request.sampling.temperature <= 0 and row.finish_reason is None:
            row.smallest_margin = margin if row.smallest_margin is None else min(margin, row.smallest_margin)
    return [
        greedy[i]
        if row.request.sampling.temperature <= 0
        else next_token(logits[i], row.request.sampling, row.generator)
        for i, row in enumerate(rows)
    ]


def _held_token(logits: torch.Tensor, row: Row) -> tuple[int, float, float]:
    """The likeliest token that the constraint allows, its logit, and the second best one's (-inf where there is none)."""
    assert row.held is not None
    allowed = torch.tensor(row.held.allowed(row.ids), device=logits.device)
    if not row.ids:
        row.choices_mass = float((logits[allowed].float().logsumexp(0) - logits.float().logsumexp(0)).exp())
    best = logits[allowed].float().topk(min(2, len(allowed)))
    values = best.values.tolist()
    return int(allowed[best.indices[0]]), values[0], values[1] if len(values) > 1 else float("-inf")


def decode_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of a reply, decoded as evalscope's local inference does."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def decode_all(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of a reply with its special tokens."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
    )
    return text


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Index in `text` of the first stop string; -1 when there is none."""
    return min((at for at in (text.find(s) for s in stop if s) if at >= 0), default=-1)


def holds_stop(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether a stop string is in the text of `ids`, with special tokens or without."""
    return any(first_stop(decode(tokenizer, ids), stop) >= 0 for decode in (decode_all, decode_text))


def text_before_stop(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> str:
    """Text of a reply without special tokens, up to the first stop string; a stop string may hold special tokens.

    <think>, " I", " see", "<eos>" and the stop string "<eos>"  ->  " I see"
    """
    text = decode_text(tokenizer, ids)
    whole = decode_all(tokenizer, ids) if stop else text
    cut, plain_cut = first_stop(whole, stop), first_stop(text, stop)
    if cut >= 0 and whole != text:
        # The tokens wholly before the stop string, then what the token that it begins in has before it.
        kept = len(ids)
        while not whole[:cut].startswith(before := decode_all(tokenizer, ids[:kept])):
            kept -= 1
        head = decode_text(tokenizer, ids[:kept])
        grown = decode_text(tokenizer, ids[: kept + 1])
        found = head + whole[len(before) : cut] if len(grown) > len(head) else head
        return found if plain_cut < 0 else min(found, text[:plain_cut], key=len)
    return text if plain_cut < 0 else text[:plain_cut]


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens of a tokenizer as text, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    return tuple(sorted(filter(None, found), key=lambda text: (-len(text), text)))


def advance(row: Row, token: int, tokenizer: Any, end_ids: frozenset[int], positions_end: int | None) -> None:
    """Add a token to a row and set `finish_reason` if that ends it.

    `positions_end`: length of the model's position table; a row that reaches it ends. None where there is no such table.
    """
    row.ids.append(token)
    request = row.request
    if token in end_ids:
        row.finish_reason = "stop"
    elif row.held is not None and row.held.ended(row.ids):
        row.finish_reason = "stop"
    elif request.stop:
        window = STOP_WINDOW_TOKENS + max(map(len, request.stop))
        recent = row.ids[-window:]
        if holds_stop(tokenizer, recent, request.stop) and (
            recent == row.ids or holds_stop(tokenizer, row.ids, request.stop)
        ):
            row.finish_reason = "stop_string"
    full = positions_end is not None and len(row.prompt_ids) + len(row.ids) >= positions_end
    if row.finish_reason is None and (full or len(row.ids) >= request.max_new_tokens):
        row.finish_reason = "length"


def result_of(row: Row, tokenizer: Any, context_tokens: int) -> GenerateResult:
    """The result of a row that has ended."""
    assert row.finish_reason is not None
    return GenerateResult(
        key=row.request.key,
        text=text_before_stop(tokenizer, row.ids, row.request.stop),
        finish_reason=row.finish_reason,
        prompt_tokens=len(row.prompt_ids),
        completion_tokens=len(row.ids),
        token_ids=tuple(row.ids),
        truncated_tokens=row.truncated_tokens,
        smallest_margin=row.smallest_margin if row.smallest_margin != float("inf") else None,
        choices_mass=row.choices_mass,
        beyond_context_tokens=max(0, len(row.prompt_ids) + len(row.ids) - context_tokens),
    )
