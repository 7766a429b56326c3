"""KDA: Kimi Delta Attention in plain PyTorch, as GenDistill puts it in the place of softmax attention.

Follows Kimi Linear (arXiv 2510.26692) for the recurrence and GenDistill (arXiv 2603.26556, section 3, appendix C) for
the layer: key/value heads repeated after the convolution (GQA kept), no activation after the convolution, L2-normed
queries and keys, SiLU output gate that starts as the identity, no output norm, no rotary positions.

    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T        o_t = scale * S_t^T q_t

The recurrence itself is `delta` of `recurrence.py`.
Everything here is float32. Knows nothing of transformers, caches or stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.fla import delta

SILU_ONE = 1.2784645427610738
"""SiLU(SILU_ONE) = 1: the bias at which the output gate lets everything through unchanged."""
CONV_SIZE = 4
"""Tokens that the causal convolution sees, its own included."""
DT_RANGE = (1e-3, 0.1)
A_RANGE = (1.0, 16.0)
"""Ranges of the initial time step and decay rate (Mamba2's, kept by Kimi Linear)."""


@dataclass(frozen=True, slots=True)
class KDAState:
    """What a KDA layer carries from token to token."""

    conv: Tensor
    """[batch, channels of q, k and v, CONV_SIZE - 1]: the last inputs of the convolution."""
    recurrent: Tensor
    """[batch, heads, head_dim, head_dim] float32: keys by values."""


def causal_convolution(x: Tensor, weight: Tensor, past: Tensor, segments: Tensor | None) -> Tensor:
    """Depthwise causal convolution that does not look across documents.

    x: [batch, time, channels]; weight: [channels, CONV_SIZE], the last column for the token itself; past: [batch,
    channels, CONV_SIZE - 1], inputs before the first token (zeros at a start); segments: [batch, time] or None.
    """
    time, size = x.shape[1], weight.shape[1]
    extended = torch.cat((past.mT.to(x.dtype), x), 1)
    total = x * weight[:, -1]
    for back in range(1, size):
        shifted = extended[:, size - 1 - back : size - 1 - back + time]
        if segments is not None:
            numbers = F.pad(segments[:, None].float(), (back, 0), mode="replicate")[:, 0, :time]
            shifted = shifted * (numbers == segments)[..., None]
        total = total + shifted * weight[:, size - 1 - back]
    return total


class KimiDeltaAttention(nn.Module):
    """The mixer: projections, convolution, recurrence, output gate; parameters as in GenDistill."""

    def __init__(self, hidden_size: int, heads: int, kv_heads: int, head_dim: int, scale: float, chunk: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale, self.chunk = scale, chunk
        width, kv_width = heads * head_dim, kv_heads * head_dim
        self.q_proj = nn.Linear(hidden_size, width, bias=False)
        self.k_proj = nn.Linear(hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, hidden_size, bias=False)
        self.conv_weight = nn.Parameter(torch.zeros(width + 2 * kv_width, CONV_SIZE))
        self.f_a = nn.Linear(hidden_size, head_dim, bias=False)
        self.f_b = nn.Linear(head_dim, width, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(width))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.b_proj = nn.Linear(hidden_size, heads, bias=False)
        self.g_a = nn.Linear(hidden_size, head_dim, bias=False)
        self.g_b = nn.Linear(head_dim, width, bias=True)

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of what does not start as a plain random matrix; draws from torch's generator."""
        low, high = (torch.tensor(bound).log().item() for bound in DT_RANGE)
        step = torch.empty_like(self.dt_bias, device="cpu").uniform_(low, high).exp()
        identity = torch.zeros_like(self.conv_weight, device="cpu")
        identity[:, -1] = 1.0
        return {
            "conv_weight": identity,
            "dt_bias": step + torch.log(-torch.expm1(-step)),
            "A_log": torch.empty_like(self.A_log, device="cpu").uniform_(*A_RANGE).log(),
            "g_b.weight": torch.zeros_like(self.g_b.weight, device="cpu"),
            "g_b.bias": torch.full_like(self.g_b.bias, SILU_ONE, device="cpu"),
        }

    def empty_state(self, batch: int, device: torch.device) -> KDAState:
        """The state before the first token."""
        conv = torch.zeros((batch, self.conv_weight.shape[0], CONV_SIZE - 1), device=device)
        return KDAState(conv, torch.zeros((batch, self.heads, self.head_dim, self.head_dim), device=device))

    def log_decay(self, x: Tensor) -> Tensor:
        """Log of the per-channel decay, <= 0, float32: [batch, time, heads, head_dim]."""
        rate = self.A_log.float().exp()[:, None]
        raw = self.f_b(self.f_a(x)).float() + self.dt_bias.float()
        return -rate * F.softplus(raw).view(*x.shape[:2], self.heads, self.head_dim)

    def forward(
        self, x: Tensor, *, state: KDAState | None = None, segments: Tensor | None = None, real: Tensor | None = None
    ) -> tuple[Tensor, KDAState]:
        """x: [batch, time, hidden_size] -> the same shape, and the state after the last real token of each row.

        `segments` [batch, time] numbers packed documents; `real` [batch, time] bool is False at padding, which may
        stand anywhere, enters neither convolution nor state, and gets zeros. Not both at once (ValueError).
        """
        if real is None:
            return self._forward(x, state, segments, None)
        if segments is not None:
            raise ValueError("padding and packed documents in one batch: pack without an attention mask")
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)[..., None].expand_as(x)
        out, new_state = self._forward(x.gather(1, order), state, None, real.sum(1))
        return torch.zeros_like(out).scatter(1, order, out) * real[..., None].to(out.dtype), new_state

    def _forward(
        self, x: Tensor, state: KDAState | None, segments: Tensor | None, counts: Tensor | None
    ) -> tuple[Tensor, KDAState]:
        """`counts` [batch]: real tokens per row, which come first; None when all are real."""
        batch, time, _ = x.shape
        state = self.empty_state(batch, x.device) if state is None else state
        inputs = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1).float()
        mixed = causal_convolution(inputs, self.conv_weight.float(), state.conv, segments)
        q, k, v = mixed.split([p.out_features for p in (self.q_proj, self.k_proj, self.v_proj)], -1)
        q = F.normalize(q.view(batch, time, self.heads, self.head_dim), dim=-1, eps=1e-6) * self.scale
        k = F.normalize(k.view(batch, time, self.kv_heads, self.head_dim), dim=-1, eps=1e-6)
        v = v.view(batch, time, self.kv_heads, self.head_dim)
        k, v = (h.repeat_interleave(self.heads // self.kv_heads, 2) for h in (k, v))
        g, beta = self.log_decay(x), self.b_proj(x).float().sigmoid()
        past = torch.cat((state.conv, inputs.mT), -1)
        if counts is None:
            conv = past[..., -(CONV_SIZE - 1) :]
        else:
            real = torch.arange(time, device=x.device) < counts[:, None]
            g, beta = g * real[..., None, None], beta * real[..., None]
            last = counts[:, None] + torch.arange(CONV_SIZE - 1, device=x.device)
            conv = past.gather(2, last[:, None].expand(-1, past.shape[1], -1))
        o, recurrent = delta(q, k, v, g, beta, state.recurrent, segments, chunk=self.chunk)
        gated = o.flatten(2).to(x.dtype) * F.silu(self.g_b(self.g_a(x)))
        return self.o_proj(gated), KDAState(conv, recurrent)
