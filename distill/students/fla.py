"""The one door to the recurrences: what mixers call, whatever computes it.

Knows nothing of layers or caches.
"""

from __future__ import annotations

from torch import Tensor

from distill.students.recurrence import (
    CHUNK_TOKENS,
    chunked_delta,
    chunked_linear,
    recurrent_delta,
    recurrent_linear,
)


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
    """The recurrence `linear` (shapes as in `recurrence.recurrent_linear`) by the fastest form for these tensors."""
    if q.shape[1] == 1:
        return recurrent_linear(q, k, v, g, state)
    return chunked_linear(q, k, v, g, state, segments, chunk=chunk)


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
    """The recurrence `delta` (shapes as in `recurrence.recurrent_delta`) by the fastest form for these tensors."""
    if q.shape[1] == 1:
        return recurrent_delta(q, k, v, g, beta, state)
    return chunked_delta(q, k, v, g, beta, state, segments, chunk=chunk)
