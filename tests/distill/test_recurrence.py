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


@pytest.mark.parametrize("strength", [0.0, 0.01, 1.0, 200.0])
def test_single_precision_holds_for_gates_of_any_strength(rule: Rule, strength: float) -> None:
    inputs = random_inputs(rule, strength, torch.float32)
    results = []
    for form in (rule.loop, rule.fast):
        out, state = form(*inputs)
        results.append((out, state, *torch.autograd.grad(out.sum() + state.sum(), inputs)))
    for slow, fast in zip(*results, strict=True):
        assert torch.isfinite(fast).all()
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def test_gates_that_close_wholly_lose_no_gradient(rule: Rule) -> None:
    q, k, v, g, *rest = random_inputs(rule, dtype=torch.float32)
    inputs = [q, k, v, (g * 1e30).detach().requires_grad_(), *rest]
    out, state = rule.fast(*inputs)
    torch.testing.assert_close(out, rule.loop(*inputs)[0])
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(out.sum() + state.sum(), inputs))


def test_the_same_key_over_and_over_is_solved_exactly() -> None:
    q, k, v, g, beta, state = random_inputs(RULES["kda"], strength=0.0, dtype=torch.float32, time=64)
    inputs = (q, k[:, :1].expand_as(k), v, g, torch.ones_like(beta), state)
    torch.testing.assert_close(chunked_delta(*inputs, chunk=64)[0], recurrent_delta(*inputs)[0], rtol=1e-5, atol=1e-5)


def saved_bytes(form: Callable[..., Any], inputs: list[Tensor]) -> int:
    """What autograd keeps for the backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        form(*inputs)
    return sum(storage.nbytes() for storage in storages.values())


def test_memory_grows_with_time_and_not_faster(rule: Rule) -> None:
    short, long = (saved_bytes(rule.fast, random_inputs(rule, time=time)) for time in (256, 1024))
    assert long <= 4.01 * short


def test_state_carries_over(rule: Rule) -> None:
    *inputs, state = random_inputs(rule)
    whole, end = rule.fast(*inputs, state, chunk=4)
    first, middle = rule.fast(*(x[:, :7] for x in inputs), state, chunk=4)
    second, last = rule.fast(*(x[:, 7:] for x in inputs), middle, chunk=4)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last, end)
