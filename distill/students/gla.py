"""GLA: gated linear attention (arXiv 2312.06635) instead of softmax attention.

    S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T        o_t = scale * S_t^T q_t

with a log decay per key channel, g = logsigmoid(gk_b(gk_a x)) / 16, its projection of rank 16. Differs from the publication
as our KDA does: a convolution (without SiLU) with `short_conv`, a norm before the gate only with `output_norm`, and a bias in
the gate's projection, so that it can start open.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.base import MixerConfig, RecurrentMixer

DECAY_RANK = 16
DECAY_DIVISOR = 16
"""Divides the log-sigmoid, so that decays start near 1."""


class GatedLinearAttention(RecurrentMixer):
    """The mixer `gla`."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        hidden, width = config.hidden_size, self.heads * self.head_dim
        self.gk_a = nn.Linear(hidden, DECAY_RANK, bias=False)
        self.gk_b = nn.Linear(DECAY_RANK, width, bias=True)
        if config.output_gate != "none":
            self.g_proj = nn.Linear(hidden, width, bias=True)

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of this mixer's own parameters; see `Mixer.initial_values`."""
        return {**super().initial_values(), **self.gate_values("g_proj.weight", "g_proj.bias")}

    def recur(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, segments: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The recurrence of this mixer; see `RecurrentMixer.recur`."""
        g = F.logsigmoid(self.gk_b(self.gk_a(x)).float()).view_as(q) / DECAY_DIVISOR
        g = g if real is None else g * real[..., None, None]
        return self.run_linear(q, k, v, g, state, segments)

    def gate(self, x: Tensor) -> Tensor:
        """Input of the gate's activation; see `RecurrentMixer.gate`."""
        return self.g_proj(x)
