"""What all mixers share (configuration, state, padding), and what recurrent mixers share besides.

A mixer replaces softmax attention: [batch, time, hidden_size] in and out, with a state of fixed size between tokens.
Recurrent mixers follow GenDistill (arXiv 2603.26556, section 3, appendix C): key/value heads are repeated after the
convolution (GQA kept), no activation after the convolution, an output gate that starts open, no rotary positions.
Convolution, recurrence and state are float32, under autocast too.

A new mixer is a subclass in a file beside this one and one row in `hybrid.MIXERS`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from distill.students.fla import delta, linear
from distill.students.recurrence import recurrent_delta, recurrent_linear

SILU_ONE = 1.2784645427610738
"""SiLU(SILU_ONE) = 1: at this bias a SiLU gate multiplies by 1."""
SIGMOID_OPEN = 4.0
"""Bias of a sigmoid gate that starts open: sigmoid never reaches 1, here it is 0.982."""
GATES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "silu": (F.silu, SILU_ONE),
    "sigmoid": (torch.sigmoid, SIGMOID_OPEN),
}
"""Output gate -> its activation, and the bias at which it is open."""
CONV_SIZE = 4
"""Tokens that the causal convolution sees, the current one included."""
STEP_RANGE = (1e-3, 0.1)
RATE_RANGE = (1.0, 16.0)
"""Ranges of the initial time step and decay rate (Mamba2's, kept by Kimi Linear)."""

Positions = tuple[Tensor, Tensor]
"""Rotary cosines and sines, [batch or 1, time, head_dim] each."""


@strict
class MixerConfig(Qwen3Config):
    """Qwen3's configuration with the switches of the mixers; the defaults are GenDistill's."""

    qk_norm: bool = True
    """RMS norm on queries and keys of softmax attention: Qwen3 has it, Qwen2 and Llama do not."""
    attention_output_bias: bool = False
    """Bias on the output projection; `attention_bias` is for queries, keys and values alone."""
    output_gate: str = "silu"
    """Activation of the output gate: "silu", "sigmoid" or "none" (no gate)."""
    gate_identity: bool = True
    """Whether the gate starts open: SiLU as exactly 1, sigmoid at SIGMOID_OPEN."""
    output_norm: bool = False
    """RMS norm per head between recurrence and gate."""
    short_conv: bool = True
    """Causal convolution of CONV_SIZE tokens over queries, keys and values."""
    conv_identity: bool = True
    """Whether the convolution starts as the identity (otherwise as torch's Conv1d does)."""
    qk_l2norm: bool = True
    """Queries and keys of unit length in KDA and Gated DeltaNet; GLA and Mamba2 have none, as published."""
    query_scale: float | None = None
    """Factor on queries; None means head_dim ** -0.5, in Mamba2 1."""
    chunk_size: int = 16
    """Tokens per chunk of the fast forms; changes speed, not results."""
    sliding_window: int | None = 1024
    """Tokens that sliding-window attention sees, the current one included."""
    attention_sinks: int = 4
    """First tokens of a document that sliding-window attention always sees."""

    def __post_init__(self, **kwargs: Any) -> None:
        window = self.sliding_window
        super().__post_init__(**kwargs)
        self.sliding_window = window  # Qwen3 forgets it unless use_sliding_window, which is about softmax layers

    def validate_output_gate(self) -> None:
        """Raises ValueError for an unknown gate."""
        if self.output_gate not in (*GATES, "none"):
            raise ValueError(f"output_gate must be one of {', '.join(GATES)} or none, found {self.output_gate!r}")


class Mixer(nn.Module):
    """Base of all mixers: handles padding and packing; a subclass implements `mix`."""

    starts_as_attention = False
    """Whether it has all tensors of the teacher's attention and starts with their values."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.naive = False
        """Whether to compute by the definition, a loop over time, instead of the fast form."""
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of parameters other than random matrices and zero biases; draws from torch's generator."""
        return {}

    @abstractmethod
    def empty_state(self, batch: int, device: torch.device) -> Any:
        """The state before the first token: a dataclass of tensors, batch first."""

    @abstractmethod
    def mix(
        self,
        x: Tensor,
        state: Any,
        segments: Tensor | None,
        counts: Tensor | None,
        position_embeddings: Positions | None,
    ) -> tuple[Tensor, Any]:
        """x [batch, time, hidden_size] -> outputs of the same shape, and the new state.

        `counts` [batch]: real tokens per row, which come first; None when all are real. Other arguments as in `forward`.
        """

    def forward(
        self,
        x: Tensor,
        *,
        state: Any = None,
        segments: Tensor | None = None,
        real: Tensor | None = None,
        position_embeddings: Positions | None = None,
    ) -> tuple[Tensor, Any]:
        """x [batch, time, hidden_size] -> the same shape, and the state after the last real token of each row.

        `segments` [batch, time] numbers packed documents; `real` [batch, time] bool is False at padding, which may be
        anywhere, enters no state, and gets zeros. Raises ValueError for both at once. Only sliding-window attention uses
        `position_embeddings`.
        """
        state = self.empty_state(x.shape[0], x.device) if state is None else state
        if real is None:
            return self.mix(x, state, segments, None, position_embeddings)
        if segments is not None:
            raise ValueError("padding and packed documents in one batch: pack without an attention mask")
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)[..., None]

        def first(y: Tensor) -> Tensor:
            return y.expand(len(x), -1, -1).gather(1, order.expand(-1, -1, y.shape[-1]))

        positions = position_embeddings and (first(position_embeddings[0]), first(position_embeddings[1]))
        out, new_state = self.mix(first(x), state, None, real.sum(1), positions)
        return torch.zeros_like(out).scatter(1, order.expand_as(out), out) * real[..., None].to(out.dtype), new_state


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """State of a recurrent mixer, float32."""

    conv: Tensor
    """[batch, channels of q, k and v, CONV_SIZE - 1]: the convolution's last inputs (width 0 without a convolution)."""
    recurrent: Tensor
    """[batch, heads, head_dim, head_dim]: keys x values."""


def causal_convolution(x: Tensor, weight: Tensor, past: Tensor, segments: Tensor | None) -> Tensor:
    """Depthwise causal convolution that does not look across documents; shaped as x.

    x: [batch, time, channels]; weight: [channels, CONV_SIZE], last column for the token itself; past: [batch, channels,
    CONV_SIZE - 1], inputs before the first token (zeros at a start); segments: [batch, time] or None.
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


def initial_steps(parameter: Tensor) -> Tensor:
    """Biases, shaped as `parameter`, whose softplus is log-uniform in STEP_RANGE."""
    step = torch.empty_like(parameter, device="cpu").uniform_(*map(math.log, STEP_RANGE)).exp()
    return step + torch.log(-torch.expm1(-step))


def initial_rates(parameter: Tensor) -> Tensor:
    """Logs of decay rates, shaped as `parameter`; the rates are uniform in RATE_RANGE."""
    return torch.empty_like(parameter, device="cpu").uniform_(*RATE_RANGE).log()


class RecurrentMixer(Mixer):
    """Projections, convolution, recurrence, output gate; a subclass implements `recur` and `gate`."""

    unit_length = False
    """Whether `qk_l2norm` applies."""
    conv_has_bias = False

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.scale = self.head_dim**-0.5 if config.query_scale is None else config.query_scale
        self.widths = [p.out_features for p in (self.q_proj, self.k_proj, self.v_proj)]
        channels = sum(self.widths)
        self.past = CONV_SIZE - 1 if config.short_conv else 0
        self.conv_weight = nn.Parameter(torch.zeros(channels, CONV_SIZE)) if config.short_conv else None
        self.conv_bias = nn.Parameter(torch.zeros(channels)) if config.short_conv and self.conv_has_bias else None
        self.o_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.output_norm else None

    @abstractmethod
    def recur(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, segments: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs [batch, time, heads, head_dim] and the state after them.

        q, k, v: that shape, float32. `real` [batch, time] is False at padding: k is 0 there, and log decays must be.
        """

    @abstractmethod
    def gate(self, x: Tensor) -> Tensor:
        """Input of the gate's activation, [batch, time, heads * head_dim]; not called when there is no gate."""

    def initial_values(self) -> dict[str, Tensor]:
        """Starting values of this mixer's own parameters; see `Mixer.initial_values`."""
        values = {}
        if self.conv_weight is not None:
            weight = torch.empty_like(self.conv_weight, device="cpu")
            if self.config.conv_identity:
                weight.zero_()[:, -1] = 1.0
            else:
                weight.uniform_(-(CONV_SIZE**-0.5), CONV_SIZE**-0.5)
            values["conv_weight"] = weight
        if self.conv_bias is not None:
            values["conv_bias"] = torch.zeros_like(self.conv_bias, device="cpu")
        return values

    def gate_values(self, weight: str, bias: str) -> dict[str, Tensor]:
        """Starting values of the gate's last projection that open it; empty where it need not start open."""
        if self.config.output_gate == "none" or not self.config.gate_identity:
            return {}
        _, opening = GATES[self.config.output_gate]
        return {
            weight: torch.zeros_like(self.get_parameter(weight), device="cpu"),
            bias: torch.full_like(self.get_parameter(bias), opening, device="cpu"),
        }

    def empty_state(self, batch: int, device: torch.device) -> RecurrentState:
        """The state before the first token; see `Mixer.empty_state`."""
        conv = torch.zeros((batch, sum(self.widths), self.past), device=device)
        return RecurrentState(conv, torch.zeros((batch, self.heads, self.head_dim, self.head_dim), device=device))

    def run_linear(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The recurrence `linear` on q, k, v, g, state, segments."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            return recurrent_linear(*inputs) if self.naive else linear(*inputs, chunk=self.config.chunk_size)

    def run_delta(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The recurrence `delta` on q, k, v, g, beta, state, segments."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            return recurrent_delta(*inputs) if self.naive else delta(*inputs, chunk=self.config.chunk_size)

    def mix(
        self,
        x: Tensor,
        state: RecurrentState,
        segments: Tensor | None,
        counts: Tensor | None,
        position_embeddings: Positions | None,
    ) -> tuple[Tensor, RecurrentState]:
        """x [batch, time, hidden_size] -> the same shape, and the new state; see `Mixer.mix`."""
        inputs = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1).float()
        q, k, v = (h.view(*x.shape[:2], -1, self.head_dim) for h in self._convolved(inputs, state.conv, segments))
        if self.unit_length and self.config.qk_l2norm:
            q, k = (F.normalize(h, dim=-1, eps=1e-6) for h in (q, k))
        q = q * self.scale
        real = None if counts is None else torch.arange(x.shape[1], device=x.device) < counts[:, None]
        if real is not None:
            k = k * real[..., None, None]
        k, v = (h.repeat_interleave(self.heads // self.kv_heads, 2) for h in (k, v))
        o, recurrent = self.recur(x, q, k, v, state.recurrent, segments, real)
        return self.o_proj(self._gated(o, x)), RecurrentState(self._last(inputs, state.conv, counts), recurrent)

    def _convolved(self, inputs: Tensor, past: Tensor, segments: Tensor | None) -> tuple[Tensor, ...]:
        if self.conv_weight is not None:
            inputs = causal_convolution(inputs, self.conv_weight.float(), past, segments)
        if self.conv_bias is not None:
            inputs = inputs + self.conv_bias.float()
        return inputs.split(self.widths, -1)

    def _last(self, inputs: Tensor, past: Tensor, counts: Tensor | None) -> Tensor:
        """The inputs that the next token's convolution needs."""
        if counts is None:
            tail = inputs[:, max(0, inputs.shape[1] - self.past) :].mT
            return torch.cat((past, tail), -1)[..., tail.shape[-1] :]
        seen = torch.cat((past, inputs.mT), -1)
        last = counts[:, None] + torch.arange(self.past, device=inputs.device)
        return seen.gather(2, last[:, None].expand(-1, seen.shape[1], -1))

    def _gated(self, o: Tensor, x: Tensor) -> Tensor:
        o = o if self.o_norm is None else self.o_norm(o)
        flat = o.flatten(2).to(x.dtype)
        if self.config.output_gate == "none":
            return flat
        activation, _ = GATES[self.config.output_gate]
        return flat * activation(self.gate(x))
