"""The slow and obvious path that the artifact guard holds an engine against: plain calls of its model, one row at a time.

No tree, no slots, no hooks on the head, no state that outlives a call: a full forward pass for every token of a reply, and
the model's own cache only where the cache is what is looked at. What the engine does with these same weights must agree.

Knows nothing of engines, requests or tolerances. It does not know better than the model: a fault that a full forward pass
of one row has too (wrong weights, a wrong config) is not seen from here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from perplexity_lies.engines.state import state_argument, state_of

LIKELY = 10
"""Tokens of each position that count when logits are compared."""
PAD_ID = 0
"""What fills a row on the right; causality keeps it from every position that is read."""
NUDGE = 1e4
"""Added to an end token's logit: no other token can be the greedy one."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy reply by full forward passes."""

    ids: tuple[int, ...]
    """The end token included, where one came."""
    margins: tuple[float, ...]
    """Logit of each token over the second best: where it is tiny, rounding decides."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation's log-likelihood by one full forward pass."""

    nats: float
    is_greedy: bool
    margin: float
    """Least distance in logits, over the continuation, at which the greedy flag would turn."""


class Reference:
    """A model, called plainly."""

    def __init__(self, model: Any, tokenizer: Any, threads: int) -> None:
        self.model, self.tokenizer, self.threads = model, tokenizer, threads
        self.device = next(model.parameters()).device
        self.end_ids = stated_end_ids(model, tokenizer)

    @torch.inference_mode()
    def logits(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Float logits [time, vocabulary] of each row after one full forward pass, shorter rows padded on the right."""
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), PAD_ID, device=self.device)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.tensor(row, device=self.device)
        with _threads(self.threads):
            found = self.model(input_ids=tokens, use_cache=False).logits.float().cpu()
        return [found[at, : len(row)] for at, row in enumerate(rows)]

    def rounding(self, ids: Sequence[int]) -> float:
        """One unit in the last place of the largest logits after `ids`: what logits of this dtype can be told apart by."""
        largest = self.logits([ids])[0].abs().amax(-1).mean()
        return float(largest * torch.finfo(next(self.model.parameters()).dtype).eps)

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        """Log-likelihood of `continuation` after `context`, off one full forward pass over both."""
        logits = self.logits([[*context, *continuation]])[0][len(context) - 1 : -1]
        wanted = torch.tensor(continuation)
        nats = logits.double().log_softmax(-1).gather(-1, wanted[:, None]).sum()
        best = logits.topk(2)
        own = logits.gather(-1, wanted[:, None])[:, 0]
        is_first = best.indices[:, 0] == wanted
        margins = torch.where(is_first, best.values[:, 0] - best.values[:, 1], best.values[:, 0] - own)
        # One position that is surely not greedy settles the flag; otherwise every position has a say.
        greedy = bool(is_first.all())
        return Scored(float(nats), greedy, float(margins.min() if greedy else margins[~is_first].max()))

    def greedy(self, prompt: Sequence[int], most_tokens: int) -> Greedy:
        """Up to `most_tokens` greedy tokens, each off a full forward pass over all before it; ends at an end token."""
        ids: list[int] = []
        margins: list[float] = []
        while len(ids) < most_tokens and not (ids and ids[-1] in self.end_ids):
            best = self.logits([[*prompt, *ids]])[0][-1].topk(2)
            ids.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
        return Greedy(tuple(ids), tuple(margins))

    @torch.inference_mode()
    def logits_token_by_token(self, ids: Sequence[int], prefill: int) -> torch.Tensor:
        """Logits [time, vocabulary]: `ids[:prefill]` at once, the rest token by token from the model's own cache."""
        name, state, parts = state_argument(self.model), None, []
        tokens = torch.tensor([list(ids)], device=self.device)
        with _threads(self.threads):
            for part in (tokens[:, :prefill], *tokens[:, prefill:].split(1, dim=1)):
                output = self.model(input_ids=part, use_cache=True, **{name: state})
                state = state_of(output)
                parts.append(output.logits[0].float().cpu())
        return torch.cat(parts)

    @staticmethod
    def apart_nats(one: torch.Tensor, other: torch.Tensor) -> list[float]:
        """For each position of two logits [time, vocabulary], the largest difference of log-probabilities among the `LIKELY`
        tokens that either holds likeliest.

        Log-probabilities, so that a constant added to all logits counts for nothing; the likeliest, since the rounding of a
        logit far down is large and moves nothing.
        """
        mine, theirs = one.double().log_softmax(-1), other.double().log_softmax(-1)
        likely = min(LIKELY, mine.shape[-1])
        either = torch.cat([mine.topk(likely).indices, theirs.topk(likely).indices], dim=-1)
        found: list[float] = (mine - theirs).gather(-1, either).abs().amax(-1).tolist()
        return found

    @contextlib.contextmanager
    def nudged(self, end_id: int, from_call: int) -> Iterator[None]:
        """Let `end_id` be the greedy token from the `from_call`-th projection on the vocabulary (counted from 0)."""
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
    def can_nudge(self) -> bool:
        """Whether the model shows the layer that projects on the vocabulary."""
        return self.model.get_output_embeddings() is not None


def stated_end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a reply: the generation config's, else the config's, else the tokenizer's."""
    for stated in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if stated is not None:
            ids: Iterable[int] = [stated] if isinstance(stated, int) else stated
            return frozenset(ids)
    return frozenset()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
