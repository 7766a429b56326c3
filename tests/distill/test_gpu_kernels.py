"""fla's kernels behind the door against the loops, values and gradients, on a CUDA device. Run by `make gpu-check`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.students.fla import delta, installed_kernels, linear
from distill.students.recurrence import chunked_delta, chunked_linear, recurrent_delta, recurrent_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BATCH, TIME, HEADS, WIDTH = 2, 150, 2, 64
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 3e-2}
"""Largest error, as a share of the largest value: the kernels multiply float32 in TF32 unless told otherwise."""


def random_inputs(rule: str, strength: float) -> list[Tensor]:
    """q, k, v, g, (beta,) state on the device, float32; `strength` scales the log decay."""
    shape = (BATCH, TIME, HEADS, WIDTH)
    q, k, v = (torch.randn(shape) for _ in range(3))
    g = -strength * torch.rand((*shape[:3], WIDTH if rule.endswith("channel") else 1))
    beta = [torch.rand(shape[:3])] if rule.startswith("delta") else []
    state = torch.randn(BATCH, HEADS, WIDTH, WIDTH)
    return [x.cuda() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, *beta, state)]


def with_gradients(out: Tensor, state: Tensor, inputs: list[Tensor], probes: list[Tensor]) -> list[Tensor]:
    """Outputs, state and the gradients of a probe of both."""
    total = (out.float() * probes[0]).sum() + (state * probes[1]).sum()
    return [out, state, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("strength", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule", ["delta by channel", "delta by head", "linear by channel", "linear by head"])
def test_the_door_gives_what_the_loop_gives(rule: str, dtype: torch.dtype, strength: float, packed: bool) -> None:
    pytest.importorskip("fla")
    assert rule in installed_kernels()
    segments = (torch.rand(BATCH, TIME) < 0.05).long().cumsum(1).cuda() if packed else None
    loop, door = (recurrent_delta, delta) if rule.startswith("delta") else (recurrent_linear, linear)
    inputs = [x.requires_grad_() for x in random_inputs(rule, strength)]
    probes = [torch.randn(BATCH, TIME, HEADS, WIDTH).cuda(), torch.randn(BATCH, HEADS, WIDTH, WIDTH).cuda()]
    lowered = [x.to(dtype) for x in inputs[:3]]
    slow = with_gradients(*loop(*(x.float() for x in lowered), *inputs[3:], segments), inputs, probes)
    fast = with_gradients(*door(*lowered, *inputs[3:], segments), inputs, probes)
    for expected, found in zip(slow, fast, strict=True):
        assert torch.isfinite(found).all()
        assert (found.float() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("by_channel", [True, False])
def test_the_chunked_forms_run_there_too(by_channel: bool) -> None:
    rule = "channel" if by_channel else "head"
    for name, loop, fast in (("delta", recurrent_delta, chunked_delta), ("linear", recurrent_linear, chunked_linear)):
        inputs = [x.double() for x in random_inputs(f"{name} by {rule}", 1.0)]
        for expected, found in zip(loop(*inputs), fast(*inputs), strict=True):
            torch.testing.assert_close(found, expected)
