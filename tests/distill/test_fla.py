"""The door: what it runs where there is no kernel, and how it speaks to one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.students.fla import delta, linear, run_kernel
from distill.students.recurrence import recurrent_delta, recurrent_linear

BATCH, TIME, HEADS, KEYS, VALUES = 3, 17, 2, 4, 6


def random_inputs(time: int = TIME) -> tuple[Tensor, ...]:
    """q, k, v, g, beta, state."""
    q, k, g = torch.randn(3, BATCH, time, HEADS, KEYS).unbind()
    beta, v = torch.rand(BATCH, time, HEADS), torch.randn(BATCH, time, HEADS, VALUES)
    return q, 0.4 * k, v, -g.abs(), beta, torch.randn(BATCH, HEADS, KEYS, VALUES)


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor,
    output_final_state: bool,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`delta` with the arguments of fla's kernels: sequences lie end to end in one row, each has a state."""
    assert output_final_state
    if cu_seqlens is None:
        return recurrent_delta(scale * q, k, v, g, beta, initial_state)
    assert len(q) == 1 and len(initial_state) == len(cu_seqlens) - 1
    found = [
        recurrent_delta(*(x[:, begin:end] for x in (scale * q, k, v, g, beta)), initial_state[i : i + 1])
        for i, (begin, end) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True))
    ]
    return torch.cat([out for out, _ in found], 1), torch.cat([state for _, state in found])


@pytest.mark.parametrize("packed", [False, True])
def test_a_kernel_is_given_each_document_as_a_sequence_with_its_state(packed: bool) -> None:
    *inputs, state = random_inputs()
    segments = (torch.rand(BATCH, TIME) < 0.3).long().cumsum(1) if packed else None
    if segments is not None:
        segments[1] = 0
    for found, expected in zip(
        run_kernel(kernel, tuple(inputs), state, segments),
        recurrent_delta(*inputs, state, segments),  # type: ignore[arg-type]
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("time", [1, 2, TIME])
def test_without_a_kernel_the_door_gives_what_the_loops_give(time: int) -> None:
    q, k, v, g, beta, state = random_inputs(time)
    torch.testing.assert_close(delta(q, k, v, g, beta, state), recurrent_delta(q, k, v, g, beta, state))
    torch.testing.assert_close(linear(q, k, v, g, state), recurrent_linear(q, k, v, g, state))
    by_head = g[..., :1]
    torch.testing.assert_close(delta(q, k, v, by_head, beta, state), recurrent_delta(q, k, v, by_head, beta, state))
    torch.testing.assert_close(linear(q, k, v, by_head, state), recurrent_linear(q, k, v, by_head, state))
