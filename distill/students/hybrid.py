"""`plies_hybrid`: a stack like Qwen3, Qwen2 or Llama in which mixers replace attention in some or all layers.

Everything but the mixers is transformers' own code (5.x). Kept attention layers use RoPE, and QK norm and biases as the
teacher does. Packed documents are marked as in transformers, by `position_ids` that restart and no attention mask, or by
`cu_seqlens`; attention is then block-diagonal and mixers start anew at each document. Generation uses `DynamicCache`, with a
`MixerCacheLayer` for each mixer. `register` tells transformers' Auto classes of the architecture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers import initialization as init
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, CacheLayerMixin
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask, find_packed_sequence_indices
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RMSNorm, Qwen3RotaryEmbedding

from distill.students.base import Mixer, MixerConfig

ATTENTION, KDA = "full_attention", "kda"
MIXERS = {
    KDA: "kda:KimiDeltaAttention",
    "gdn": "gated_deltanet:GatedDeltaNet",
    "gla": "gla:GatedLinearAttention",
    "mamba2": "mamba2:Mamba2",
    "swa": "swa:SlidingWindowAttention",
}
"""Layer type -> `module:class` of its mixer, the module beside this one. A new mixer is a file there and a row here."""


def mixer_class(layer_type: str) -> type[Mixer]:
    """The mixer of a layer type in MIXERS."""
    module, _, name = MIXERS[layer_type].partition(":")
    found: type[Mixer] = getattr(import_module(f".{module}", __package__), name)
    return found


@strict
class HybridConfig(MixerConfig):
    """Configuration; `layer_types` has `full_attention` or a name in MIXERS for each layer."""

    model_type = "plies_hybrid"

    mlp_bias: bool = False

    def validate_layer_type(self) -> None:
        """Raises ValueError for an unknown layer type, or a list of another length than the stack."""
        known = (ATTENTION, *MIXERS)
        if set(self.layer_types or ()) - set(known) or len(self.layer_types or ()) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types must be {self.num_hidden_layers} of {', '.join(known)}, found {self.layer_types}"
            )


class MixerCacheLayer(CacheLayerMixin):
    """State of one mixer in a transformers cache. It cannot be cropped: a recurrence does not run backwards."""

    supports_early_init = False
    fixed_size_state = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: Any = None
        """A dataclass of tensors, batch first."""
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the first update brings the state."""

    def update(self, state: Any, tokens: int) -> None:
        """Replaces the state by the one after `tokens` more tokens."""
        self.state, self.is_initialized = state, True
        self.seen += tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset of a full attention layer that has seen the same tokens."""
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
        """Keeps the batch rows `indices`, in that order; an index may repeat."""
        self._change(lambda tensor: tensor[indices])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorders the rows to `beam_idx`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times, copies next to each other."""
        self._change(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            parts = {part.name: change(getattr(self.state, part.name)) for part in dataclasses.fields(self.state)}
            self.state = dataclasses.replace(self.state, **parts)


DYNAMIC_LAYER_TYPE_MAPPING.update(dict.fromkeys(MIXERS, MixerCacheLayer))


class KeptAttention(Qwen3Attention):
    """Softmax attention as the teacher has it, with or without QK norm and biases."""

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if not config.qk_norm:
            self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.attention_output_bias != config.attention_bias:
            width = config.num_attention_heads * self.head_dim
            self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)


class HybridDecoderLayer(GradientCheckpointingLayer):
    """Norm, `self_attn` (softmax) or `mixer`, norm, MLP."""

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        if self.layer_type == ATTENTION:
            self.self_attn = KeptAttention(config, layer_idx)
        else:
            self.mixer = mixer_class(self.layer_type)(config)
        self.mlp = LlamaMLP(config)
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
        """hidden_states [batch, time, hidden_size] -> the same shape."""
        normed = self.input_layernorm(hidden_states)
        if self.layer_type == ATTENTION:
            mixed, _ = self.self_attn(
                normed, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
            )
        else:
            cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
            mixed, state = self.mixer(
                normed,
                state=None if cache is None else cache.state,
                segments=segments,
                real=real,
                position_embeddings=position_embeddings,
            )
            if cache is not None:
                cache.update(state, normed.shape[1])
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def positions_in(cu_seqlens: Tensor, places: Tensor) -> Tensor:
    """Distance of each place from the start of its document; document i spans `cu_seqlens[i:i+2]`."""
    return places - cu_seqlens[torch.searchsorted(cu_seqlens, places, right=True) - 1]


class HybridPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of both classes below."""

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
        if isinstance(module, Mixer):
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
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids [batch, time] or inputs_embeds [batch, time, hidden_size] -> last_hidden_state, shaped as the latter.

        `attention_mask` [batch, past + time] is 0 at padding (left, right or between). Packed documents need
        `use_cache=False`, as in transformers' own models; `cu_seqlens` [documents + 1], from 0 to time, says where they
        begin and end in place of `position_ids`. Raises ValueError unless exactly one of `input_ids` and
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
            places = torch.arange(x.shape[1], device=x.device)
            position_ids = (places + seen if cu_seqlens is None else positions_in(cu_seqlens, places))[None]
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
    """The language model that `AutoModelForCausalLM` loads from a `plies_hybrid` checkpoint."""

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
    """Registers `plies_hybrid` with AutoConfig and AutoModelForCausalLM. Calling it again changes nothing."""
    AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)
