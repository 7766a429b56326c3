"""What a shown model says while its engine works: end tokens kept out of replies, logits written down as they are computed.

A long reply is held against one full forward pass over prompt and reply: each of its tokens must be greedy there, and the logits
that the engine chose it from must be those of that pass. Which row of which batch they stood in does not matter.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from perplexity_lies.engines.device import cpu_threads
from perplexity_lies.guard.reference import LIKELY, NUDGE, Reference, Scored, scored


@dataclass(slots=True)
class Recording:
    """The likeliest log-probabilities of every logits that the model returned, by their greedy token."""

    seen: dict[int, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    """Greedy token -> log-probabilities [LIKELY], from high to low."""

    def add(self, logits: torch.Tensor) -> None:
        """Write down `logits` [n, vocabulary]."""
        for token, values in zip(logits.argmax(-1).tolist(), _likeliest(logits), strict=True):
            self.seen[token].append(values)

    def nearest(self, logits: torch.Tensor, chosen: Sequence[int]) -> list[float]:
        """For each position of `logits` [time, vocabulary], how far the nearest that led to `chosen` lies, in nats.

        Infinite where the model never had that token as its greedy one.
        """
        found = []
        for token, values in zip(chosen, _likeliest(logits), strict=True):
            there = self.seen.get(token)
            found.append(float((torch.stack(there) - values).abs().amax(-1).min()) if there else float("inf"))
        return found


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).topk(min(LIKELY, logits.shape[-1])).values.cpu()


@contextlib.contextmanager
def recorded(reference: Reference) -> Iterator[Recording]:
    """Inside, what the model returns is written down: of a prompt its last position, of a step every row."""
    recording = Recording()

    def write(_: Any, __: Any, given: dict[str, Any], output: Any) -> None:
        logits, read = output.logits, given["input_ids"].shape[1]
        whole = logits.shape[1] == read > 1
        recording.add(logits[:, -1] if whole else logits.reshape(-1, logits.shape[-1]))

    handle = reference.model.register_forward_hook(write, with_kwargs=True)
    try:
        yield recording
    finally:
        handle.remove()


@contextlib.contextmanager
def kept_out(reference: Reference, tokens: Iterable[int]) -> Iterator[None]:
    """Inside, none of `tokens` can be generated: replies are as long as they may be."""
    head, out = reference.model.get_output_embeddings(), sorted(tokens)

    def lower(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        lowered = logits.clone()
        lowered[..., out] -= NUDGE
        return lowered

    handle = head.register_forward_hook(lower) if head is not None and out else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@torch.inference_mode()
def after(reference: Reference, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """fp32 logits [tokens of the reply, vocabulary] that lead to each token of `reply`, from one full forward pass."""
    ids = torch.tensor([[*prompt, *reply[:-1]]], device=reference.device)
    with cpu_threads(reference.threads):
        logits = reference.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.float().cpu()


def behind(logits: torch.Tensor, chosen: Sequence[int]) -> list[float]:
    """How far, in logits, each of the `chosen` tokens lies behind the likeliest."""
    own = logits.gather(-1, torch.tensor(list(chosen))[:, None])[:, 0]
    found: list[float] = (logits.amax(-1) - own).tolist()
    return found


def nats_after(reference: Reference, prompt: Sequence[int], continuation: Sequence[int]) -> float:
    """Log-likelihood of `continuation`, whose last token is not run: it may lie one beyond a table of positions."""
    return scored(after(reference, prompt, continuation), continuation).nats


def stretches_of(reference: Reference, prompt: Sequence[int], reply: Sequence[int], tokens: int) -> list[Scored]:
    """Log-likelihoods of the stretches of `tokens` tokens that make up a reply, from one full forward pass."""
    logits = after(reference, prompt, reply)
    starts = range(0, len(reply) - tokens + 1, tokens)
    return [scored(logits[at : at + tokens], reply[at : at + tokens]) for at in starts]
