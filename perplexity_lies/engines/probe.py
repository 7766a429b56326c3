"""The trial run of a checkpoint when the torch engine opens it: what can be done with its state, found out by doing it.

A few tokens are run from states in each of the ways that the engine would use, and the logits are compared with one pass over
all of them. What fails is not done with this checkpoint; the reason is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from perplexity_lies.engines.base import CannotShare
from perplexity_lies.engines.slots import Slots, check_can_slot
from perplexity_lies.engines.state import check_can_fork, gather, run_on, state_of
from perplexity_lies.errors import CheckpointError
from perplexity_lies.record.journal import not_numbers

PROBE_TOKENS = 8
"""Tokens of the trial run."""

SHORT, LONG = 3, 5
"""Tokens in the states that it goes on from."""

NOISES, ROUNDINGS = 16, 8
"""Logits count as equal when they are no further apart than NOISES times what an equal pass over fewer tokens changes, or than
NOISES times ROUNDINGS units in the last place. Tight, because a state that is ignored may move logits by a thousandth only."""


class Fit(NamedTuple):
    """Why something cannot be done with a checkpoint's state; empty where it can."""

    why_not_shared: str
    """Copied, and several tokens run from it."""
    why_not_slots: str
    """Copied into slots, and one token run from rows of different lengths; never where `why_not_cached` says something."""
    why_not_cached: str
    """One token run from it, all rows of one length."""


@torch.inference_mode()
def find_fit(model: Any, device: torch.device) -> Fit:
    """Run two rows of PROBE_TOKENS tokens in every way. Raises CheckpointError when it cannot run them at all."""
    row = torch.arange(1, PROBE_TOKENS + 1, device=device) % model.config.get_text_config().vocab_size
    ids = torch.stack([row, row.flip(0)])
    try:
        whole = model(input_ids=ids, use_cache=False).logits
        coarse = torch.finfo(whole.dtype).eps ** 0.5
        first = model(input_ids=ids[:, :SHORT], use_cache=True).logits
    except Exception as error:  # the checkpoint's own code may raise anything
        raise CheckpointError("the checkpoint cannot be run", found=f"{type(error).__name__}: {error}") from error
    if whole.isnan().any() or whole.isposinf().any():
        raise not_numbers("NaN or infinity among the logits of its first tokens")
    try:
        _compare("its first tokens, run without what follows,", first, whole[:, :SHORT], coarse)
    except CannotShare as reason:
        raise CheckpointError(
            "the checkpoint is no causal language model: what follows a token changes its logits",
            found=str(reason), mend="a checkpoint that was trained to continue texts (BERT's kind: is_decoder in config.json)",
        ) from reason  # fmt: skip
    noise = float((first - whole[:, :SHORT]).abs().max() / whole.abs().max())
    given = (model, ids, whole, min(coarse, NOISES * max(noise, ROUNDINGS * torch.finfo(whole.dtype).eps)))
    unshared, uncached = _why_not(_check_shared, *given), _why_not(_check_cached, *given)
    return Fit(
        why_not_shared=unshared,
        why_not_slots=unshared or uncached or _why_not(_check_slots, *given),
        why_not_cached=uncached,
    )


def _why_not(check: Callable[[Any, torch.Tensor, torch.Tensor, float], None], *given: Any) -> str:
    try:
        check(*given)
    except CannotShare as reason:
        return str(reason)
    except Exception as error:  # as above
        return f"running on from its state fails: {type(error).__name__}: {error}"
    return ""


def _check_shared(model: Any, ids: torch.Tensor, whole: torch.Tensor, bar: float) -> None:
    """Several tokens from copies, twice: the first time must not have changed what is copied.

    Mamba fails, which ignores its state when it reads several tokens (transformers 5.23).
    """
    state = _state_after(model, ids[:, :SHORT])
    check_can_fork(state)
    for rows in ([1, 0, 1], [0]):
        found = run_on(model, ids[rows, SHORT:], gather(state, rows), SHORT, use_cache=True).logits
        _compare("several tokens run from its state", found, whole[rows, SHORT:], bar)


def _check_cached(model: Any, ids: torch.Tensor, whole: torch.Tensor, bar: float) -> None:
    """Single tokens. They fail for Nemotron-H and Zamba2, whose steps lack the clamp of a pass (transformers 5.23)."""
    state = _state_after(model, ids[:, :SHORT])
    for at in range(SHORT, PROBE_TOKENS):
        output = run_on(model, ids[:, at : at + 1], state, at, use_cache=True)
        state = state_of(output)
        _compare("a token run from its state", output.logits, whole[:, at : at + 1], bar)


def _check_slots(model: Any, ids: torch.Tensor, whole: torch.Tensor, bar: float) -> None:
    lengths = [SHORT, LONG]
    slots = Slots(model, len(lengths))
    for slot, length in enumerate(lengths):
        state = _state_after(model, ids[:, :length])
        check_can_slot(state)
        slots.enter(slot, state, slot, length)
    for at in range(PROBE_TOKENS - LONG):
        places = [length + at for length in lengths]
        found = slots.step(ids[[0, 1], places].tolist())
        _compare("a token run in slots", found, whole[[0, 1], places], bar)


def _state_after(model: Any, ids: torch.Tensor) -> Any:
    return state_of(run_on(model, ids, None, 0, use_cache=True))


def _compare(what: str, found: torch.Tensor, whole: torch.Tensor, bar: float) -> None:
    """Raises CannotShare where two logits are further apart than `bar` times the largest."""
    apart = (found - whole).abs().max()
    if not apart <= bar * whole.abs().max():
        raise CannotShare(f"{what} have other logits than in one pass (by {apart:.2g})")
