"""Chooses how to compute a recurrence: flash-linear-attention's kernels on CUDA where installed, else the chunked form.

The kernels are fla 0.6's (Triton): `chunk_kda`, `chunk_gated_delta_rule`, `chunk_gla` and `chunk_simple_gla`. They need packed
documents as one row with `cu_seqlens`, and a state for each document.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distill.students.recurrence import (
    CHUNK_TOKENS,
    chunked_delta,
    chunked_linear,
    recurrent_delta,
    recurrent_linear,
)

Kernel = Callable[..., tuple[Tensor, Tensor]]
MOST_KEYS = 256
"""Most key channels of a head that every kernel accepts."""


@functools.cache
def installed_kernels() -> dict[str, Kernel]:
    """Recurrence and gate -> fla's kernel; empty where fla is not installed."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.kda import chunk_kda
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return {}
    return {
        "delta by channel": chunk_kda,
        "delta by head": chunk_gated_delta_rule,
        "linear by channel": chunk_gla,
        "linear by head": chunk_simple_gla,
    }


def _has_kernel(q: Tensor) -> bool:
    return q.is_cuda and q.dtype != torch.float64 and q.shape[-1] <= MOST_KEYS and bool(installed_kernels())


def run_kernel(
    kernel: Kernel, tensors: tuple[Tensor, ...], state: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs one of fla's kernels. `tensors`: q, k, v, g and its further inputs, [batch, time, ...] each; results as `delta`."""
    options: dict[str, Any] = {"scale": 1.0, "output_final_state": True}
    if segments is None:
        return kernel(*tensors, initial_state=state, **options)
    batch, time = segments.shape
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    numbers = begins.flatten().cumsum(0).view(batch, time) - 1
    bounds = torch.cat((begins.flatten().nonzero()[:, 0], numbers.new_tensor([batch * time])))
    states = state.new_zeros((len(bounds) - 1, *state.shape[1:])).index_copy(0, numbers[:, 0], state)
    flat = [x.flatten(0, 1)[None] for x in tensors]
    out, states = kernel(*flat, initial_state=states, cu_seqlens=bounds, **options)
    return out[0].unflatten(0, (batch, time)), states[numbers[:, -1]]


def linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    segments: Tensor | None = None,
    *,
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """The recurrence `linear` in the fastest form for these tensors; shapes as in `recurrence.recurrent_linear`.

    Where a kernel runs, q, k and v may be bfloat16; the outputs are then bfloat16, too.
    """
    if q.shape[1] == 1:
        return recurrent_linear(q, k, v, g, state)
    if not _has_kernel(q):
        return chunked_linear(q, k, v, g, state, segments, chunk=chunk)
    if g.shape[-1] == 1:
        return run_kernel(installed_kernels()["linear by head"], (q, k, v, g[..., 0]), state, segments)
    return run_kernel(installed_kernels()["linear by channel"], (q, k, v, g), state, segments)


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    segments: Tensor | None = None,
    *,
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """The recurrence `delta` in the fastest form; shapes as in `recurrence.recurrent_delta`, types as in `linear`."""
    if q.shape[1] == 1:
        return recurrent_delta(q, k, v, g, beta, state)
    if not _has_kernel(q):
        return chunked_delta(q, k, v, g, beta, state, segments, chunk=chunk)
    if g.shape[-1] == 1:
        return run_kernel(installed_kernels()["delta by head"], (q, k, v, g[..., 0], beta), state, segments)
    return run_kernel(installed_kernels()["delta by channel"], (q, k, v, g, beta), state, segments)
