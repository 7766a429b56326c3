"""`plies_hybrid`: a Qwen3 stack in which some layers keep softmax attention and the others have KDA instead.

Everything but the mixer is transformers' own Qwen3 code (5.x). KDA layers use no positions (NoPE); attention layers use
RoPE and QK norm as the teacher does. Packed documents are marked as in transformers: no attention mask, and
`position_ids` that restart; attention is then block-diagonal and KDA starts anew. Generation uses `DynamicCache`, in
which a KDA layer is a `KDACacheLayer`. `register` makes the Auto classes know the architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, Qwen3Config
from transformers import initialization as init
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask, find_packed_sequence_indices
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm, Qwen3RotaryEmbedding

from distill.students.kda import KDAState, KimiDeltaAttention

ATTENTION, KDA = "full_attention", "kda"


@strict
class HybridConfig(Qwen3Config):
    """Qwen3's configuration, with `layer_types` of `full_attention` or `kda`, one per layer."""

    model_type = "plies_hybrid"

    query_scale: float | None = None
    """Factor on KDA queries; None means head_dim ** -0.5."""
    chunk_size: int = 16
    """Tokens per chunk of the fast form; changes speed, not results."""

    def validate_layer_type(self) -> None:
        """Refuses layer types other than ours, or a list of another length than the stack."""
        unknown = sorted(set(self.layer_types or ()) - {ATTENTION, KDA})
        if unknown or len(self.layer_types or ()) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types must be {self.num_hidden_layers} of '{ATTENTION}' or '{KDA}', found {self.layer_types}"
            )


class KDACacheLayer(CacheLayerMixin):
    """State of one KDA layer in a transformers cache. It cannot be cropped: a recurrence does not run backwards."""

    _layer_type = KDA
    supports_early_init = False
    fixed_size_state = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: KDAState | None = None
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the first update brings the state."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes a convolution state and a recurrent state, in the places of keys and values."""
        self.state = KDAState(key_states, value_states)
        self.is_initialized = True
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset as of a full attention layer that has seen the same tokens."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    def reset(self) -> None:
        """Back to before the first token."""
        self.state, self.seen, self.is_initialized = None, 0, False

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices` of the batch, in that order, repeated where an index is repeated."""
        if self.state is not None:
            self.state = KDAState(self.state.conv[indices], self.state.recurrent[indices])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order of `beam_idx`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row."""
        if self.state is not None:
            conv, recurrent = (s.repeat_interleave(repeats, 0) for s in (self.state.conv, self.state.recurrent))
            self.state = KDAState(conv, recurrent)


class HybridDecoderLayer(GradientCheckpointingLayer):
    """Norm, mixer, norm, MLP. The mixer is `self_attn` (softmax) or `mixer`."""

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        if self.layer_type == ATTENTION:
            self.self_attn = Qwen3Attention(config, layer_idx)
        else:
            self.mixer = KimiDeltaAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                config.head_dim**-0.5 if config.query_scale is None else config.query_scale,
                config.chunk_size,
            )
        self.mlp = Qwen3MLP(config)
        self.input_layernorm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        real: Tensor | None,
        segments: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: [batch, time, hidden_size] -> the same."""
        normed = self.input_layernorm(hidden_states)
        if self.layer_type == ATTENTION:
            mixed, _ = self.self_attn(
                normed, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
            )
        else:
            cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
            mixed, state = self.mixer(normed, state=cache and cache.state, segments=segments, real=real)
            if cache is not None:
                cache.update(state.conv, state.recurrent)
                cache.seen += normed.shape[1]
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class HybridPreTrainedModel(PreTrainedModel):
    """What both classes below share with transformers."""

    config_class = HybridConfig
    config: HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = ["A_log", "dt_bias"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KimiDeltaAttention):
            for name, value in module.initial_values().items():
                init.copy_(module.get_parameter(name), value)


class HybridModel(HybridPreTrainedModel):
    """Embedding, layers, final norm."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([HybridDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids [batch, time] or inputs_embeds [batch, time, hidden_size] -> last_hidden_state, as the latter.

        `attention_mask` [batch, past + time] is 0 at padding (left, right or between). Packed documents need
        `use_cache=False`, as in transformers' own models. Raises ValueError unless exactly one of `input_ids` and
        `inputs_embeds` is given, and on a cache that was not made for this configuration.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and len(past_key_values.layers) != self.config.num_hidden_layers:
            raise ValueError("a hybrid model's cache is made for its layers: DynamicCache(config=model.config)")
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen)[None]
        masking = {
            "config": self.config,
            "inputs_embeds": x,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        mask = create_causal_mask(**masking) if ATTENTION in self.config.layer_types else None
        padding = create_recurrent_attention_mask(**masking)
        packed = attention_mask is None and past_key_values is None
        segments = find_packed_sequence_indices(position_ids.expand(x.shape[0], -1)) if packed else None
        position_embeddings = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(
                x,
                attention_mask=mask,
                real=None if padding is None else padding.bool(),
                segments=segments,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(x), past_key_values=past_key_values if use_cache else None
        )


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """The language model: what `AutoModelForCausalLM` gives for a `plies_hybrid` checkpoint."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, kept, vocab_size]; with `labels` [batch, time] (-100: not scored) also their cross-entropy."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


def register() -> None:
    """Makes AutoConfig and AutoModelForCausalLM know `plies_hybrid`. Calling it again changes nothing."""
    AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)


def hybrid_config(teacher: PreTrainedConfig, kept: tuple[int, ...], **kda: Any) -> HybridConfig:
    """The configuration of a student of `teacher` that keeps softmax attention in the layers `kept`."""
    shared = {key: value for key, value in teacher.to_dict().items() if key not in ("model_type", "architectures")}
    shared["layer_types"] = [ATTENTION if i in kept else KDA for i in range(teacher.num_hidden_layers)]
    return HybridConfig(**{**shared, **kda})
