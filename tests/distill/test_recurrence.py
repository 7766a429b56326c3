"""The recurrences: the fast forms against the loops, the loops against the written-out matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.students.recurrence import chunked_delta, chunked_linear, recurrent_delta, recurrent_linear

BATCH, TIME, HEADS, KEYS, VALUES = 2, 19, 3, 5, 4


class Rule(NamedTuple):
    """One recurrence with one kind of gate."""

    loop: Callable[..., tuple[Tensor, Tensor]]
    fast: Callable[..., tuple[Tensor, Tensor]]
    gate_width: int


RULES = {
    "kda": Rule(recurrent_delta, chunked_delta, KEYS),
    "gated_deltanet": Rule(recurrent_delta, chunked_delta, 1),
    "gla": Rule(recurrent_linear, chunked_linear, KEYS),
    "mamba2": Rule(recurrent_linear, chunked_linear, 1),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Iterator[Rule]:
    """Each of the four."""
    yield RULES[request.param]


def random_inputs(rule: Rule, strength: float = 1.0, dtype: torch.dtype = torch.float64, time: int = TIME) -> list[Any]:
    """q, k, v, g, (beta,) state; `strength` scales the log decay."""
    q = torch.randn((BATCH, time, HEADS, KEYS), dtype=dtype)
    k = F.normalize(torch.randn_like(q), dim=-1)
    v = torch.randn((BATCH, time, HEADS, VALUES), dtype=dtype)
    g = -strength * torch.rand((BATCH, time, HEADS, rule.gate_width), dtype=dtype)
    beta = [torch.rand((BATCH, time, HEADS), dtype=dtype)] if rule.loop is recurrent_delta else []
    state = torch.randn((BATCH, HEADS, KEYS, VALUES), dtype=dtype)
    return [x.requires_grad_() for x in (q, k, v, g, *beta, state)]


def random_segments() -> Tensor:
    return (torch.rand(BATCH, TIME) < 0.25).long().cumsum(1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 7, 16, 64])
def test_fast_equals_the_loop_in_values_and_gradients(rule: Rule, chunk: int, packed: bool) -> None:
    segments = random_segments() if packed else None
    inputs = random_inputs(rule)
    probe, state_probe = torch.randn(BATCH, TIME, HEADS, VALUES), torch.randn(BATCH, HEADS, KEYS, VALUES)
    results = []
    for form in (rule.loop, lambda *a: rule.fast(*a, chunk=chunk)):
        out, state = form(*inputs, segments)
        results.append((out, state, *torch.autograd.grad((out * probe).sum() + (state * state_probe).sum(), inputs)))
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_the_loops_are_the_matrix_recurrences(rule: Rule) -> None:
    q, k, v, g, *beta, state = (x.detach() for x in random_inputs(rule))
    out, final = rule.loop(q, k, v, g, *beta, state)
    for b in range(BATCH):
        for h in range(HEADS):
            s = state[b, h]
            for t in range(TIME):
                key, value = k[b, t, h][:, None], v[b, t, h][None]
                s = torch.diag(g[b, t, h].expand(KEYS).exp()) @ s
                if beta:
                    erased = (torch.eye(KEYS, dtype=s.dtype) - beta[0][b, t, h] * key @ key.T) @ s
                    s = erased + beta[0][b, t, h] * key @ value
                else:
                    s = s + key @ value
                torch.testing.assert_close(out[b, t, h], s.T @ q[b, t, h])
            torch.testing.assert_close(final[b, h], s)


def test_strong_decay_neither_overflows_nor_loses_gradients(rule: Rule) -> None:
    inputs = random_inputs(rule, strength=200.0, dtype=torch.float32)
    slow, _ = rule.loop(*inputs)
    fast, state = rule.fast(*inputs, chunk=16)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(fast.square().sum() + state.sum(), inputs)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_state_carries_over(rule: Rule) -> None:
    *inputs, state = random_inputs(rule)
    whole, end = rule.fast(*inputs, state, chunk=4)
    first, middle = rule.fast(*(x[:, :7] for x in inputs), state, chunk=4)
    second, last = rule.fast(*(x[:, 7:] for x in inputs), middle, chunk=4)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, end)
