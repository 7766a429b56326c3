"""A quick look at a checkpoint under both protocols, for the card that a recipe writes.

Log-likelihood ranks the complete replies given the chat-rendered question (sum of log-probabilities, and mean per
token); generation is greedy and its answer is found by the task's pattern. The harness, not this, is the instrument: it
asks the same of the same items through lm-eval and evalscope.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from suites.miniature.world import Item

BATCH_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """Percent of a task's items."""

    items: int
    loglikelihood: float
    """Right choice first by summed log-probability."""
    loglikelihood_mean: float
    """Right choice first by mean log-probability per token."""
    generation: float
    """Extracted answer equals the target, and the reply ended by itself."""
    unparsed: float
    """Replies in which the pattern found nothing."""
    truncated: float
    """Replies cut by the token budget."""


def _prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[list[int]]:
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": item.question}], tokenize=False, add_generation_prompt=True
        )
        for item in items
    ]
    return [tokenizer.encode(text) for text in texts]


def _batches(rows: list[list[int]]) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]


def _padded(rows: Iterable[list[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    rows = list(rows)
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), pad), torch.zeros((len(rows), length), dtype=torch.int64)
    for number, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[number, where], mask[number, where] = torch.tensor(row), 1
    return ids, mask


def _log_probabilities(model: PreTrainedModel, rows: list[list[int]], pad: int) -> list[Tensor]:
    """Per row, the log-probability of each token after the first."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in _batches(rows):
        ids, mask = _padded((rows[i] for i in batch), pad, left=False)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        logs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        for place, i in enumerate(batch):
            found[i] = logs[place, : len(rows[i]) - 1]
    return found


def _replies(model: PreTrainedModel, prompts: list[list[int]], budget: int, pad: int) -> list[list[int]]:
    """Greedy continuations as token ids, `<eos>` and what follows it included."""
    found: list[list[int]] = [[]] * len(prompts)
    for batch in _batches(prompts):
        ids, mask = _padded((prompts[i] for i in batch), pad, left=True)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=budget, do_sample=False, pad_token_id=pad
        )
        for place, i in enumerate(batch):
            found[i] = out[place, ids.shape[1] :].tolist()
    return found


@torch.no_grad()
def measure_task(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], settings: dict[str, Any]
) -> TaskScores:
    """Scores of one task; `settings` holds its `extract` pattern and `max_new_tokens`."""
    prompts = _prompts(tokenizer, items)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    rows = [prompt + tokenizer.encode(c) for prompt, item in zip(prompts, items, strict=True) for c in item.choices]
    logs = _log_probabilities(model, rows, pad)
    by_sum = by_mean = right = unparsed = truncated = 0
    replies = _replies(model, prompts, settings["max_new_tokens"], pad)
    pattern = re.compile(settings["extract"])
    for number, (item, prompt, reply) in enumerate(zip(items, prompts, replies, strict=True)):
        first = number * len(item.choices)
        scored = [log[len(prompt) - 1 :] for log in logs[first : first + len(item.choices)]]
        by_sum += max(range(len(scored)), key=lambda i: scored[i].sum().item()) == item.gold
        by_mean += max(range(len(scored)), key=lambda i: scored[i].mean().item()) == item.gold
        ended = end in reply
        match = pattern.search(tokenizer.decode(reply, skip_special_tokens=True).strip())
        right += ended and match is not None and match.group(1) == item.target
        unparsed += match is None
        truncated += not ended
    percent = 100 / len(items)
    return TaskScores(
        items=len(items),
        loglikelihood=by_sum * percent,
        loglikelihood_mean=by_mean * percent,
        generation=right * percent,
        unparsed=unparsed * percent,
        truncated=truncated * percent,
    )
