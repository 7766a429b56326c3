"""Mamba2 (arXiv 2405.21060) instead of softmax attention, in MambaInLlama's layout (arXiv 2408.15237).

    S_t = exp(g_t) S_{t-1} + k_t (dt_t v_t)^T        o_t = S_t^T q_t + D v_t        g = -exp(A_log) dt

with one decay per head and a step dt = softplus(dt_proj x + dt_bias). Mamba2's C, B and x are called q, k and v here, so that
they start from the teacher's projections and belong to their groups; its joint input projection is split accordingly.
Queries and keys are neither normalised nor scaled; the convolution has a bias and no activation after it; no norm follows
the recurrence; D starts at 0 (Phi-Mamba, arXiv 2408.10189).
The gate z has no bias: where it starts open, a constant is added to z and z_proj starts at 0. So a student of Qwen3-0.6B with
7 layers kept has 640,859,888 parameters, GenDistill's 641M.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students.base import GATES, MixerConfig, RecurrentMixer, initial_rates, initial_steps


class Mamba2(RecurrentMixer):
    """The mixer `mamba2`."""

    conv_has_bias = True

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.scale = 1.0 if config.query_scale is None else config.query_scale
        self.dt_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.zeros(self.heads))
        self.shift = 0.0
        if config.output_gate != "none":
            self.z_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
            self.shift = GATES[config.output_gate][1] if config.gate_identity else 0.0

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of this mixer's own parameters; see `Mixer.initial_values`."""
        values = {
            **super().initial_values(),
            "dt_bias": initial_steps(self.dt_bias),
            "A_log": initial_rates(self.A_log),
            "D": torch.zeros_like(self.D, device="cpu"),
        }
        if self.shift:
            values["z_proj.weight"] = torch.zeros_like(self.z_proj.weight, device="cpu")
        return values

    def recur(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, segments: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The recurrence of this mixer; see `RecurrentMixer.recur`."""
        step = F.softplus(self.dt_proj(x).float() + self.dt_bias.float())
        g = -self.A_log.float().exp() * step
        g = g if real is None else g * real[..., None]
        o, state = self.run_linear(q, k, v * step[..., None], g[..., None], state, segments)
        return o + self.D.float()[:, None] * v, state

    def gate(self, x: Tensor) -> Tensor:
        """Input of the gate's activation; see `RecurrentMixer.gate`."""
        return self.z_proj(x) + self.shift
