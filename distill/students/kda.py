"""KDA: Kimi Delta Attention (arXiv 2510.26692), as GenDistill uses it instead of softmax attention.

    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T        o_t = scale * S_t^T q_t

with a log decay per key channel, g = -exp(A_log) * softplus(f_b(f_a x) + dt_bias), and low-rank decay and gate
projections of rank head_dim. Differs from the publication as GenDistill does: no SiLU after the convolution, no output
norm, SiLU instead of sigmoid in the gate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.base import MixerConfig, RecurrentMixer, initial_rates, initial_steps


class KimiDeltaAttention(RecurrentMixer):
    """The mixer `kda`."""

    unit_length = True

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        hidden, width = config.hidden_size, self.heads * self.head_dim
        self.f_a = nn.Linear(hidden, self.head_dim, bias=False)
        self.f_b = nn.Linear(self.head_dim, width, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(width))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.b_proj = nn.Linear(hidden, self.heads, bias=False)
        if config.output_gate != "none":
            self.g_a = nn.Linear(hidden, self.head_dim, bias=False)
            self.g_b = nn.Linear(self.head_dim, width, bias=True)

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of this mixer's own parameters; see `Mixer.initial_values`."""
        return {
            **super().initial_values(),
            "dt_bias": initial_steps(self.dt_bias),
            "A_log": initial_rates(self.A_log),
            **self.gate_values("g_b.weight", "g_b.bias"),
        }

    def log_decay(self, x: Tensor) -> Tensor:
        """Log of the decay per channel, <= 0, float32: [batch, time, heads, head_dim]."""
        rate = self.A_log.float().exp()[:, None]
        raw = self.f_b(self.f_a(x)).float() + self.dt_bias.float()
        return -rate * F.softplus(raw).view(*x.shape[:2], self.heads, self.head_dim)

    def recur(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, segments: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The recurrence of this mixer; see `RecurrentMixer.recur`."""
        g, beta = self.log_decay(x), self.b_proj(x).float().sigmoid()
        g = g if real is None else g * real[..., None, None]
        return self.run_delta(q, k, v, g, beta, state, segments)

    def gate(self, x: Tensor) -> Tensor:
        """Input of the gate's activation; see `RecurrentMixer.gate`."""
        return self.g_b(self.g_a(x))
