"""The quick measurement against the same asked one by one, the slow way."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from distill.measure import measure_task
from distill.students.hybrid import HybridForCausalLM
from suites.miniature.catalogue import TASKS, all_items


@pytest.mark.parametrize("task", ["facts", "arith"])
@torch.no_grad()
def test_batched_measurement_equals_one_by_one(
    make_hybrid: Callable[..., HybridForCausalLM], tokenizer: PreTrainedTokenizerBase, task: str
) -> None:
    model, items, settings = make_hybrid((1,)), all_items()[task][:6], {**TASKS[task], "max_new_tokens": 6}
    found = measure_task(model, tokenizer, items, settings)
    by_sum = by_mean = right = unparsed = truncated = 0
    for item in items:
        prompt = tokenizer.encode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": item.question}], tokenize=False, add_generation_prompt=True
            )
        )
        sums, means = [], []
        for choice in item.choices:
            ids = tokenizer.encode(choice)
            logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            values = [logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)]
            sums.append(sum(values))
            means.append(sum(values) / len(values))
        by_sum += sums.index(max(sums)) == item.gold
        by_mean += means.index(max(means)) == item.gold
        reply: list[int] = []
        while len(reply) < 6 and tokenizer.eos_token_id not in reply:
            reply.append(int(model(torch.tensor([prompt + reply])).logits[0, -1].argmax()))
        ended = tokenizer.eos_token_id in reply
        match = re.search(settings["extract"], tokenizer.decode(reply, skip_special_tokens=True).strip())
        right += ended and match is not None and match.group(1) == item.target
        unparsed += match is None
        truncated += not ended
    counts = (found.loglikelihood, found.loglikelihood_mean, found.generation, found.unparsed, found.truncated)
    assert [round(share * 6 / 100) for share in counts] == [by_sum, by_mean, right, unparsed, truncated]
    assert found.items == 6
