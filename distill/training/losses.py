"""KL and cross-entropy over a large vocabulary in little memory: logits are made for a chunk of rows at a time.

    chunked_kl(hidden_s, head_s, hidden_t, head_t, weights)    sum over rows of weight * KL(teacher || student), nats
    chunked_ce(hidden, head, targets, weights)                 sum over rows of weight * cross-entropy, nats

KL has a temperature (Hinton et al. 2015: times temperature squared). Optionally the target is sparse: the teacher's K
likeliest tokens, renormalised, against the student's whole softmax (GenDistill, arXiv 2603.26556, appendix E). Optionally it
is mixed with cross-entropy. Each chunk's logits are made, used and freed within the forward pass, which also computes the
gradients: that of the hidden states always, that of the head only where the head is trained. The caller selects the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Largest float32 tensor [chunk, vocabulary]; two are alive at a time, the teacher's and the student's."""
BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**29}
"""Bytes of one row block inside a chunk, on which softmaxes are computed; on a CPU this must fit the cache."""


@dataclass(frozen=True, slots=True)
class _Form:
    """The loss of a row: (1 - ce_weight) * KL + ce_weight * cross-entropy."""

    temperature: float
    top_k: int
    ce_weight: float
    dtype: torch.dtype
    """Type of the matrix products."""


def rows_within(budget: dict[str, int], vocabulary: int, device: torch.device) -> int:
    """Rows of float32 logits that fit the budget of this kind of device: a multiple of 32 if possible, at least one."""
    rows = budget.get(device.type, budget["cuda"]) // (4 * vocabulary)
    return rows // 32 * 32 or max(1, rows)


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension, in place."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _divergence(student: Tensor, teacher: Tensor, temperature: float, top_k: int) -> Tensor:
    """KL of each row times temperature squared. In place: `student` becomes the gradient, `teacher` is overwritten."""
    if 0 < top_k < teacher.shape[1]:
        kept = teacher.topk(top_k)
        teacher.fill_(-torch.inf).scatter_(1, kept.indices, kept.values)
    log_p, log_q = _log_softmax(teacher.div_(temperature)), _log_softmax(student.div_(temperature))
    p = log_p.exp()
    terms = log_p.sub_(log_q).mul_(p)
    if top_k:
        terms.masked_fill_(p == 0, 0.0)  # 0 * log 0
    log_q.exp_().sub_(p).mul_(temperature)
    return terms.sum(-1).mul_(temperature**2)


def _cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row. In place: `student` becomes the gradient."""
    log_q, target = _log_softmax(student), targets[:, None]
    loss = -log_q.gather(1, target)[:, 0]
    log_q.exp_().scatter_add_(1, target, torch.full_like(target, -1.0, dtype=log_q.dtype))
    return loss


def _rows_loss(student: Tensor, teacher: Tensor | None, targets: Tensor | None, form: _Form) -> Tensor:
    """Loss [rows] of logits [rows, vocabulary]. In place: `student` becomes the gradient, `teacher` is overwritten."""
    if teacher is None:
        assert targets is not None  # chunked_ce requires them
        return _cross_entropy(student, targets)
    if targets is None or form.ce_weight == 0:
        return _divergence(student, teacher, form.temperature, form.top_k)
    also = student.clone()
    ce = _cross_entropy(also, targets).mul_(form.ce_weight)
    kl = _divergence(student, teacher, form.temperature, form.top_k).mul_(1 - form.ce_weight)
    student.mul_(1 - form.ce_weight).add_(also, alpha=form.ce_weight)
    return kl.add_(ce)


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Logits [rows, vocabulary], at least float32; the product is computed in the head's type."""
    return (hidden.to(head.dtype) @ head.mT).to(torch.promote_types(head.dtype, torch.float32))


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


class _ChunkedLoss(torch.autograd.Function):
    """The weighted sum over rows; the forward pass computes the gradients, too."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher: tuple[Tensor, Tensor] | None,
        weights: Tensor,
        targets: Tensor | None,
        form: _Form,
        chunk_rows: int,
        trains: tuple[bool, bool],
    ) -> Tensor:
        """`teacher`: its hidden states and head. `trains`: whether the student's hidden states and head get a gradient."""
        exact = torch.promote_types(form.dtype, torch.float32)
        weights, own = weights.to(exact), head.to(form.dtype)
        other = None if teacher is None else (teacher[0], teacher[1].to(form.dtype))
        grad_hidden = torch.empty_like(hidden) if trains[0] else None
        grad_head = torch.zeros_like(head, dtype=exact) if trains[1] else None
        total = torch.zeros((), dtype=exact, device=hidden.device)
        block = rows_within(BLOCK_BYTES, len(head), hidden.device)

        def add(chunk: slice) -> None:
            """Adds a chunk of rows; its logits are freed on return."""
            z_s = _logits(hidden[chunk], own)
            z_t = None if other is None else _logits(other[0][chunk], other[1])
            w, wanted = weights[chunk], _part(targets, chunk)
            for start in range(0, len(z_s), block):
                rows = slice(start, start + block)
                total.add_(_rows_loss(z_s[rows], _part(z_t, rows), _part(wanted, rows), form) @ w[rows])
            slope = z_s.to(form.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (slope @ own) * w[:, None]
            if grad_head is not None:
                grad_head.add_(slope.mT @ (hidden[chunk] * w[:, None]).to(form.dtype))

        for start in range(0, len(hidden), chunk_rows):
            add(slice(start, start + chunk_rows))
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(head.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Scales the gradients that the forward pass computed."""
        grads = [None if saved is None else saved * grad_outputs[0].to(saved.dtype) for saved in ctx.saved_tensors]
        return *grads, *[None] * 6


def _summed(
    hidden: Tensor,
    head: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    weights: Tensor,
    targets: Tensor | None,
    chunk_rows: int,
    **form: Any,
) -> Tensor:
    device = hidden.device
    mixed = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if mixed else hidden.dtype
    rows = chunk_rows or rows_within(CHUNK_BYTES, len(head), device)
    trains = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, head))
    with torch.autocast(device.type, enabled=False):
        return _ChunkedLoss.apply(hidden, head, teacher, weights, targets, _Form(**form, dtype=dtype), rows, trains)


def chunked_ce(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, *, chunk_rows: int = 0) -> Tensor:
    """Sum of `weights` [n] times cross-entropy with `targets` [n] (int64), nats; other arguments as in `chunked_kl`."""
    return _summed(hidden, head, None, weights, targets, chunk_rows, temperature=1.0, top_k=0, ce_weight=1.0)


def chunked_kl(
    hidden_s: Tensor,
    head_s: Tensor,
    hidden_t: Tensor,
    head_t: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    ce_weight: float = 0.0,
    targets: Tensor | None = None,
    chunk_rows: int = 0,
) -> Tensor:
    """Sum of `weights` [n] times (1 - ce_weight) * temperature^2 * KL(teacher || student) + ce_weight * cross-entropy, nats.

    hidden_s: [n, d], head_s: [vocabulary, d]; the teacher's likewise, with its own d. The teacher gets no gradient, `head_s`
    only if it requires one (accumulated in float32). `top_k` 0 = whole vocabulary; `chunk_rows` 0 = as many as fit
    CHUNK_BYTES. Matrix products are in autocast's type where autocast is on; softmax and sums at least in float32. Raises
    ValueError for a `ce_weight` without `targets` [n] (int64).
    """
    if ce_weight and targets is None:
        raise ValueError("a weight for cross-entropy needs targets")
    form = {"temperature": temperature, "top_k": top_k, "ce_weight": ce_weight}
    return _summed(hidden_s, head_s, (hidden_t.detach(), head_t.detach()), weights, targets, chunk_rows, **form)
