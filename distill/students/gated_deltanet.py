"""Gated DeltaNet (arXiv 2412.06464) instead of softmax attention: KDA's recurrence with one decay per head.

    S_t = (I - beta_t k_t k_t^T) exp(g_t) S_{t-1} + beta_t k_t v_t^T        o_t = scale * S_t^T q_t

with g = -exp(A_log) * softplus(a_proj x + dt_bias). Differs from the publication as our KDA does: no SiLU after the
convolution, a norm before the gate only with `output_norm`, and a bias in the gate's projection, so that it can start open.
KL-guided selection's students (ICLR 2026) have neither convolution (`short_conv: false`) nor that start.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.base import MixerConfig, RecurrentMixer, initial_rates, initial_steps


class GatedDeltaNet(RecurrentMixer):
    """The mixer `gdn`."""

    unit_length = True

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.a_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.b_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        if config.output_gate != "none":
            self.g_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=True)

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of this mixer's own parameters; see `Mixer.initial_values`."""
        return {
            **super().initial_values(),
            "dt_bias": initial_steps(self.dt_bias),
            "A_log": initial_rates(self.A_log),
            **self.gate_values("g_proj.weight", "g_proj.bias"),
        }

    def recur(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, segments: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The recurrence of this mixer; see `RecurrentMixer.recur`."""
        g = -self.A_log.float().exp() * F.softplus(self.a_proj(x).float() + self.dt_bias.float())
        g = g if real is None else g * real[..., None]
        return self.run_delta(q, k, v, g[..., None], self.b_proj(x).float().sigmoid(), state, segments)

    def gate(self, x: Tensor) -> Tensor:
        """Input of the gate's activation; see `RecurrentMixer.gate`."""
        return self.g_proj(x)
