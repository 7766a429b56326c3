"""Losses between a vocabulary's worth of logits, without ever holding the logits: rows in chunks, gradients on the way.

Forward KL(teacher || student) with temperature (Hinton et al. 2015: times temperature squared), optionally on the teacher's
K likeliest tokens renormalised (GenDistill, arXiv 2603.26556, appendix E: it is the target that is made sparse, the student
keeps its whole softmax), optionally mixed with cross-entropy; and cross-entropy alone. For each chunk of rows the logits are
made, used and let go: the gradient with respect to the hidden states is ready when the forward pass ends, and the head's is
accumulated only where the head is trained. Sums over rows, in nats. Knows nothing of models, batches or masks: the caller
selects the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Size of one [chunk, vocabulary] tensor of float32; three of them are alive at a time."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What is summed: (1 - ce_weight) * KL + ce_weight * cross-entropy."""

    temperature: float
    top_k: int
    ce_weight: float
    dtype: torch.dtype
    """Of the matrix products."""


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits fill CHUNK_BYTES; at least one."""
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocabulary))


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, in place."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _divergence(student: Tensor, teacher: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """KL of each row times temperature squared, and its slope along the student's logits. Uses both up."""
    if 0 < top_k < teacher.shape[1]:
        kept = teacher.topk(top_k)
        teacher.fill_(-torch.inf).scatter_(1, kept.indices, kept.values)
    log_p, log_q = _log_softmax(teacher.div_(temperature)), _log_softmax(student.div_(temperature))
    p = log_p.exp()
    terms = log_p.sub_(log_q).mul_(p)
    divergence = terms.nansum(-1) if top_k else terms.sum(-1)  # 0 * log 0
    return divergence * temperature**2, log_q.exp_().sub_(p).mul_(temperature)


def _cross_entropy(student: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row, and its slope along the logits, which are used up."""
    log_q, target = _log_softmax(student), targets[:, None]
    loss = -log_q.gather(1, target)[:, 0]
    return loss, log_q.exp_().scatter_add_(1, target, torch.full_like(target, -1.0, dtype=log_q.dtype))


def _rows_loss(student: Tensor, teacher: Tensor | None, targets: Tensor | None, form: _Form) -> tuple[Tensor, Tensor]:
    """Loss [rows] of these logits [rows, vocabulary], and its slope along the student's. Uses both up."""
    if teacher is None:
        assert targets is not None  # chunked_ce asks for them
        return _cross_entropy(student, targets)
    if targets is None or form.ce_weight == 0:
        return _divergence(student, teacher, form.temperature, form.top_k)
    ce, ce_slope = _cross_entropy(student.clone(), targets)
    loss, slope = _divergence(student, teacher, form.temperature, form.top_k)
    mixed = loss.mul_(1 - form.ce_weight).add_(ce, alpha=form.ce_weight)
    return mixed, slope.mul_(1 - form.ce_weight).add_(ce_slope, alpha=form.ce_weight)


class _ChunkedLoss(torch.autograd.Function):
    """The weighted sum over rows; its gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        hidden_t: Tensor | None,
        head_t: Tensor | None,
        weights: Tensor,
        targets: Tensor | None,
        form: _Form,
        chunk_rows: int,
        trains: tuple[bool, bool],
    ) -> Tensor:
        """`trains`: whether hidden states, and the head, get a gradient."""
        exact = torch.promote_types(form.dtype, torch.float32)
        weights = weights.to(exact)
        own = head.to(form.dtype)
        other = own if head_t is head or head_t is None else head_t.to(form.dtype)
        grad_hidden = torch.empty_like(hidden) if trains[0] else None
        grad_head = torch.zeros_like(head, dtype=exact) if trains[1] else None
        total = torch.zeros((), dtype=exact, device=hidden.device)

        def add(part: slice) -> None:
            """Adds a chunk of rows; its logits are gone when this returns."""
            h, w = hidden[part].to(form.dtype), weights[part]
            teacher = None if hidden_t is None else (hidden_t[part].to(form.dtype) @ other.mT).to(exact)
            loss, slope = _rows_loss((h @ own.mT).to(exact), teacher, None if targets is None else targets[part], form)
            total.add_(loss @ w)
            if grad_hidden is not None:
                grad_hidden[part] = (slope.to(form.dtype) @ own) * w[:, None]
            if grad_head is not None:
                grad_head.add_(slope.to(form.dtype).mT @ (h * w[:, None].to(form.dtype)))

        for start in range(0, len(hidden), chunk_rows):
            add(slice(start, start + chunk_rows))
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(head.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Scales what the forward pass has made."""
        grads = [None if saved is None else saved * grad_outputs[0].to(saved.dtype) for saved in ctx.saved_tensors]
        return *grads, *[None] * 7


def _summed(
    hidden: Tensor,
    head: Tensor,
    hidden_t: Tensor | None,
    head_t: Tensor | None,
    weights: Tensor,
    targets: Tensor | None,
    chunk_rows: int,
    **form: Any,
) -> Tensor:
    device = hidden.device
    mixed = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if mixed else hidden.dtype
    rows = chunk_rows or rows_per_chunk(len(head), device)
    trains = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, head))
    with torch.autocast(device.type, enabled=False):
        form_ = _Form(**form, dtype=dtype)
        return _ChunkedLoss.apply(hidden, head, hidden_t, head_t, weights, targets, form_, rows, trains)


def chunked_ce(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, *, chunk_rows: int = 0) -> Tensor:
    """Sum of `weights` [n] times cross-entropy with `targets` [n] (int64), nats; the rest as in `chunked_kl`."""
    return _summed(hidden, head, None, None, weights, targets, chunk_rows, temperature=1.0, top_k=0, ce_weight=1.0)


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

    hidden_s: [n, d], head_s: [vocabulary, d]; the teacher's likewise, with a width of its own. The teacher gets no gradient,
    `head_s` one only if it requires it (accumulated in float32). `top_k` 0 is the whole vocabulary. `chunk_rows` 0
    chooses rows that fill CHUNK_BYTES. Matrix products are in autocast's type where it is on; softmax and sums at least
    in float32. Raises ValueError for a `ce_weight` without `targets` [n] (int64).
    """
    if ce_weight and targets is None:
        raise ValueError("a weight for cross-entropy needs targets")
    form = {"temperature": temperature, "top_k": top_k, "ce_weight": ce_weight}
    return _summed(hidden_s, head_s, hidden_t.detach(), head_t.detach(), weights, targets, chunk_rows, **form)
