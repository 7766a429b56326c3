"""The slow and obvious path that the guard compares an engine with: plain forward passes of the engine's own model.

One row at a time, one full forward pass for every token of a reply: no prefix tree, no slots, no hook on the output
projection, no state kept between calls. The model's own cache is used only where the cache is what is checked.

A fault that a full forward pass of one row has too (wrong weights, a wrong config) cannot be seen from here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from perplexity_lies.engines.base import ShownModel
from perplexity_lies.engines.device import cpu_threads
from perplexity_lies.engines.state import run_on, state_of

LIKELY = 10
"""Logits are compared over this many likeliest tokens of each position."""
PAD_ID = 0
"""Fills rows on the right, where a causal model cannot see it from a position that is read."""
NUDGE = 1e4
"""Added to an end token's logit, it makes that token the greedy one."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy reply from full forward passes."""

    ids: tuple[int, ...]
    """With the end token, if the reply came to one."""
    margins: tuple[float, ...]
    """Lead of each token over the second best, in logits; where it is tiny, rounding decides."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation's log-likelihood from one full forward pass."""

    nats: float
    is_greedy: bool
    margin: float
    """Smallest change of a logit that would change `is_greedy`."""


class Reference:
    """Plain calls of a shown model."""

    def __init__(self, shown: ShownModel, tokenizer: Any) -> None:
        self.model, self.threads = shown.model, shown.threads
        self.why_not_cached = shown.why_not_cached
        self.device = next(self.model.parameters()).device
        self.end_ids = stated_end_ids(self.model, tokenizer)

    @torch.inference_mode()
    def logits(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """fp32 logits [time, vocabulary] of each row from one forward pass over all, shorter rows padded on the right."""
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), PAD_ID, device=self.device)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.tensor(row, device=self.device)
        with cpu_threads(self.threads):
            found = self.model(input_ids=tokens, use_cache=False).logits.float().cpu()
        return [found[at, : len(row)] for at, row in enumerate(rows)]

    def rounding(self, ids: Sequence[int]) -> float:
        """One unit in the last place of the largest logits after `ids`: the resolution of logits in this dtype."""
        largest = self.logits([ids])[0].abs().amax(-1).mean()
        return float(largest * torch.finfo(next(self.model.parameters()).dtype).eps)

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        """Log-likelihood of `continuation` after `context`, from one full forward pass over both."""
        return scored(self.logits([[*context, *continuation]])[0][len(context) - 1 : -1], continuation)

    def margins(
        self, prompt: Sequence[int], reply: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """`Scored.margin` of each of `continuations` after `prompt`, from one pass over `reply`.

        Each must be a beginning of `reply`, save for its last token.
        """
        logits = self.logits([[*prompt, *reply]])[0][len(prompt) - 1 :]
        return [scored(logits[: len(one)], one).margin for one in continuations]

    def greedy(self, prompt: Sequence[int], most_tokens: int) -> Greedy:
        """Up to `most_tokens` greedy tokens after `prompt`, one full forward pass each; stops at an end token."""
        ids: list[int] = []
        margins: list[float] = []
        while len(ids) < most_tokens and not (ids and ids[-1] in self.end_ids):
            best = self.logits([[*prompt, *ids]])[0][-1].topk(2)
            ids.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
        return Greedy(tuple(ids), tuple(margins))

    @torch.inference_mode()
    def logits_token_by_token(self, ids: Sequence[int], prefill: int) -> torch.Tensor:
        """Logits [time, vocabulary] by the model's own cache: `ids[:prefill]` at once, then token by token."""
        state, parts, at = None, [], 0
        tokens = torch.tensor([list(ids)], device=self.device)
        with cpu_threads(self.threads):
            for part in (tokens[:, :prefill], *tokens[:, prefill:].split(1, dim=1)):
                output = run_on(self.model, part, state, at, use_cache=True)
                state, at = state_of(output), at + part.shape[1]
                parts.append(output.logits[0].float().cpu())
        return torch.cat(parts)

    @staticmethod
    def apart_nats(one: torch.Tensor, other: torch.Tensor) -> list[float]:
        """For each position of two logits [time, vocabulary], the largest difference in log-probability, in nats.

        Only over the `LIKELY` likeliest tokens of either: logits far down round coarsely and matter to nothing.
        Log-probabilities, because adding a constant to all logits changes nothing.
        """
        mine, theirs = one.double().log_softmax(-1), other.double().log_softmax(-1)
        likely = min(LIKELY, mine.shape[-1])
        either = torch.cat([mine.topk(likely).indices, theirs.topk(likely).indices], dim=-1)
        found: list[float] = (mine - theirs).gather(-1, either).abs().amax(-1).tolist()
        return found

    @contextlib.contextmanager
    def nudged(self, end_id: int, from_call: int) -> Iterator[None]:
        """Inside, `end_id` is the greedy token from the `from_call`-th call of the output projection on (from 0)."""
        head, calls = self.model.get_output_embeddings(), 0

        def nudge(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls <= from_call:
                return logits
            raised = logits.clone()
            raised[..., end_id] += NUDGE
            return raised

        handle = head.register_forward_hook(nudge)
        try:
            yield
        finally:
            handle.remove()

    @property
    def rows(self) -> int:
        """Tokens that the output projection can say."""
        head = self.model.get_output_embeddings()
        return int(head.weight.shape[0]) if head is not None else 0

    @property
    def can_nudge(self) -> bool:
        """Whether the model has an output projection that can be hooked."""
        return self.model.get_output_embeddings() is not None


def scored(logits: torch.Tensor, continuation: Sequence[int]) -> Scored:
    """Log-likelihood of `continuation` off the logits [its tokens, vocabulary] that lead to each of its tokens."""
    wanted = torch.tensor(list(continuation))
    nats = logits.double().log_softmax(-1).gather(-1, wanted[:, None]).sum()
    best = logits.topk(2)
    own = logits.gather(-1, wanted[:, None])[:, 0]
    is_first = best.indices[:, 0] == wanted
    margins = torch.where(is_first, best.values[:, 0] - best.values[:, 1], best.values[:, 0] - own)
    # One position is enough to turn the flag off; to turn it on, every position that is not greedy must turn.
    greedy = bool(is_first.all())
    return Scored(float(nats), greedy, float(margins.min() if greedy else margins[~is_first].max()))


def stated_end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a reply: from the generation config, else the config, else the tokenizer.

    The same rule as `engines.tokens.end_ids`, written again on purpose: the guard must not share the engine's mistakes.
    """
    for stated in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if stated is not None:
            ids: Iterable[int] = [stated] if isinstance(stated, int) else stated
            return frozenset(ids)
    return frozenset()
