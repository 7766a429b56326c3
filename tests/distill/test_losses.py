"""Chunked losses are their definitions, written out in float64, values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from distill.training.losses import BLOCK_BYTES, CHUNK_BYTES, chunked_ce, chunked_kl, rows_within

ROWS, WIDTH, TEACHER_WIDTH, VOCABULARY = 11, 5, 7, 23


def definition(
    z_s: Tensor, z_t: Tensor, weights: Tensor, targets: Tensor, temperature: float, top_k: int, ce_weight: float
) -> Tensor:
    """Row by row and token by token, for autograd to differentiate."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(z_s)):
        order = z_t[row].argsort(descending=True)[: top_k or VOCABULARY]
        p = (z_t[row, order] / temperature).softmax(0)
        log_q = (z_s[row] / temperature).log_softmax(0)
        kl = sum(p[i] * (p[i].log() - log_q[token]) for i, token in enumerate(order))
        ce = -z_s[row].log_softmax(0)[targets[row]]
        total = total + weights[row] * ((1 - ce_weight) * temperature**2 * kl + ce_weight * ce)
    return total


class Case:
    """Random inputs of a fixed seed."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(1)
        self.hidden_s = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
        self.head_s = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
        self.hidden_t = torch.randn(ROWS, TEACHER_WIDTH, dtype=dtype)
        self.head_t = torch.randn(VOCABULARY, TEACHER_WIDTH, dtype=dtype)
        self.weights = torch.rand(ROWS, dtype=dtype)
        self.weights[3] = 0.0
        self.targets = torch.randint(0, VOCABULARY, (ROWS,))

    def logits(self) -> tuple[Tensor, Tensor]:
        return self.hidden_s @ self.head_s.mT, self.hidden_t @ self.head_t.mT

    def grads(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss * 0.37, (self.hidden_s, self.head_s))


@pytest.mark.parametrize(
    ("temperature", "top_k", "ce_weight", "chunk"),
    list(itertools.product([1.0, 2.5], [0, 4], [0.0, 0.3], [4, 100])) + [(0.7, VOCABULARY + 1, 1.0, 1)],
)
def test_kl_is_its_definition(temperature: float, top_k: int, ce_weight: float, chunk: int) -> None:
    case = Case()
    found = chunked_kl(
        case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights,
        temperature=temperature, top_k=top_k, ce_weight=ce_weight, targets=case.targets, chunk_rows=chunk,
    )  # fmt: skip
    wanted = definition(*case.logits(), case.weights, case.targets, temperature, top_k, ce_weight)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for mine, theirs in zip(case.grads(found), case.grads(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk", [1, 4, ROWS])
def test_cross_entropy_is_its_definition(chunk: int) -> None:
    case = Case()
    found = chunked_ce(case.hidden_s, case.head_s, case.targets, case.weights, chunk_rows=chunk)
    wanted = definition(*case.logits(), case.weights, case.targets, 1.0, 0, 1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for mine, theirs in zip(case.grads(found), case.grads(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_sft_is_kd_with_a_teacher_that_is_sure() -> None:
    case = Case()
    sure = torch.eye(VOCABULARY, dtype=torch.float64)
    kd = chunked_kl(case.hidden_s, case.head_s, 1000 * sure[case.targets], sure, case.weights)
    torch.testing.assert_close(kd, chunked_ce(case.hidden_s, case.head_s, case.targets, case.weights))


def test_no_divergence_from_oneself_and_none_the_other_way_round() -> None:
    case = Case(torch.float32)
    own = chunked_kl(case.hidden_s, case.head_s, case.hidden_s, case.head_s, case.weights)
    assert own.item() == pytest.approx(0.0, abs=1e-6)
    assert all(grad.abs().max() < 1e-6 for grad in case.grads(own))
    there = chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights)
    back = chunked_kl(case.hidden_t, case.head_t, case.hidden_s, case.head_s, case.weights)
    assert there.item() > 1 and abs(there - back) > 0.1


def test_a_row_without_weight_is_as_if_it_were_not_there() -> None:
    case = Case()
    inputs = (case.hidden_s, case.head_s, case.hidden_t, case.head_t)
    found = chunked_kl(*inputs, case.weights)
    slopes, _ = case.grads(found)
    assert not slopes[3].any() and slopes[4].all()
    rest = torch.arange(ROWS) != 3
    without = chunked_kl(case.hidden_s[rest], case.head_s, case.hidden_t[rest], case.head_t, case.weights[rest])
    torch.testing.assert_close(found, without)
    none = chunked_kl(case.hidden_s[:0], case.head_s, case.hidden_t[:0], case.head_t, case.weights[:0])
    assert none == 0 and not case.grads(none)[1].any()


def test_a_frozen_head_gets_no_gradient_and_does_not_cost_one() -> None:
    case = Case()
    frozen = case.head_s.detach()
    loss = chunked_kl(case.hidden_s, frozen, case.hidden_t, case.head_t, case.weights)
    assert loss.grad_fn.saved_tensors[1] is None
    loss.backward()
    both = chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights)
    torch.testing.assert_close(case.hidden_s.grad, torch.autograd.grad(both, case.hidden_s)[0])
    with torch.no_grad():
        assert not chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights).requires_grad


def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    case = Case(torch.float32)
    exact = chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights)
    with torch.autocast("cpu", torch.bfloat16):
        rough = chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights)
    assert rough.dtype == torch.float32 and rough != exact
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    for mine, theirs in zip(case.grads(rough), case.grads(exact), strict=True):
        assert mine.dtype == torch.float32 and (mine - theirs).norm() < 0.03 * theirs.norm()


def test_a_cross_entropy_without_targets_is_refused() -> None:
    case = Case()
    with pytest.raises(ValueError, match="needs targets"):
        chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights, ce_weight=0.1)


@pytest.mark.parametrize("block", [1, 3])
def test_blocks_of_a_chunk_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    inputs = (case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights)
    whole = chunked_kl(*inputs, ce_weight=0.2, targets=case.targets, top_k=6)
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 4 * VOCABULARY * block)
    found = chunked_kl(*inputs, ce_weight=0.2, targets=case.targets, top_k=6, chunk_rows=7)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    for mine, theirs in zip(case.grads(found), case.grads(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_rows_without_a_number_are_not_hidden() -> None:
    case = Case()
    with torch.no_grad():
        case.hidden_s[2] = torch.nan
    assert chunked_kl(case.hidden_s, case.head_s, case.hidden_t, case.head_t, case.weights, top_k=4).isnan()


def test_chunks_grow_as_vocabularies_shrink() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert rows_within(CHUNK_BYTES, 151_936, cpu) == 96 and rows_within(CHUNK_BYTES, 151_936, gpu) == 864
    assert rows_within(CHUNK_BYTES, 10**9, cpu) == 1 and rows_within(BLOCK_BYTES, 151_936, cpu) == 6
