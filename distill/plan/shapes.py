"""The shape of a teacher, and what a layer of its student costs per token, without making a single weight.

The real layer runs over fake tensors (torch's FakeTensorMode: shapes, no data). FlopCounterMode counts its products,
saved_tensors_hooks what it keeps for the backward pass. So a new mixer needs no formula here.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from distill.miniature.teacher import new_teacher
from distill.miniature.tokenizer import build_tokenizer
from distill.recipe.settings import StudentConfig, TeacherConfig
from distill.students.convert import attention_layers, group_of
from distill.students.hybrid import ATTENTION, HybridConfig, HybridDecoderLayer, HybridForCausalLM
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError, MissingError, nearest
from suites.miniature.world import vocabulary

_QWEN3 = {"vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40_960}
_QWEN2 = {"vocab_size": 151_936, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
_LLAMA = {
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "max_position_embeddings": 131_072,
}


def _shape(
    make: type[PreTrainedConfig], base: dict[str, int], hidden: int, layers: int, heads: int, **rest: Any
) -> PreTrainedConfig:
    given = {**base, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, **rest}
    return make(**{"tie_word_embeddings": True, **given})


KNOWN: dict[str, Callable[[], PreTrainedConfig]] = {
    "Qwen/Qwen3-0.6B": lambda: _shape(Qwen3Config, _QWEN3, 1024, 28, 16, intermediate_size=3072),
    "Qwen/Qwen3-1.7B": lambda: _shape(Qwen3Config, _QWEN3, 2048, 28, 16, intermediate_size=6144),
    "Qwen/Qwen3-4B": lambda: _shape(Qwen3Config, _QWEN3, 2560, 36, 32, intermediate_size=9728),
    "Qwen/Qwen3-8B": lambda: _shape(
        Qwen3Config, _QWEN3, 4096, 36, 32, intermediate_size=12_288, tie_word_embeddings=False
    ),
    "Qwen/Qwen2.5-0.5B": lambda: _shape(Qwen2Config, _QWEN2, 896, 24, 14, intermediate_size=4864),
    "Qwen/Qwen2.5-1.5B": lambda: _shape(Qwen2Config, _QWEN2, 1536, 28, 12, intermediate_size=8960),
    "Qwen/Qwen2.5-3B": lambda: _shape(Qwen2Config, _QWEN2, 2048, 36, 16, intermediate_size=11_008),
    "meta-llama/Llama-3.2-1B": lambda: _shape(LlamaConfig, _LLAMA, 2048, 16, 32),
    "meta-llama/Llama-3.2-3B": lambda: _shape(LlamaConfig, _LLAMA, 3072, 28, 24),
}
"""Published teachers, so that a plan needs no network. `-Instruct` models have the shape of their base model."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
PROBE_TOKENS = 128
"""Tokens from which on a recurrence costs the same per token."""


@dataclass(frozen=True, slots=True)
class TeacherShape:
    """A teacher's configuration and where it was found."""

    name: str
    config: PreTrainedConfig
    source: str
    """`recipe`, `config.json` or `table`."""


def teacher_shape(teacher: TeacherConfig | str) -> TeacherShape:
    """The shape of a recipe's teacher: to be trained, or found in a directory, the hub's local cache or KNOWN.

    Nothing is downloaded. Raises MissingError for a teacher found in none of these, CheckpointError for a config.json
    that transformers cannot read.
    """
    if isinstance(teacher, TeacherConfig):
        return TeacherShape("from scratch", new_teacher(teacher, build_tokenizer(vocabulary()), 0).config, "recipe")
    directory = _directory(teacher)
    if directory is not None:
        try:
            return TeacherShape(teacher, AutoConfig.from_pretrained(directory, local_files_only=True), "config.json")
        except (OSError, ValueError) as error:
            found = (str(error).strip() or "no message").splitlines()[0]
            raise CheckpointError(
                f"teacher {teacher!r}: its config.json cannot be read",
                found=found,
                mend="--teacher CHECKPOINT, a whole one",
            ) from error
    plain = teacher.partition("@")[0].removesuffix("-Instruct")
    if plain not in KNOWN:
        raise MissingError(
            f"the shape of teacher {teacher!r} is not known here{nearest(plain, KNOWN)}",
            found=f"no such directory, not in the hub's local cache; known: {', '.join(KNOWN)}",
            mend="--teacher DIRECTORY with its config.json",
        )
    return TeacherShape(teacher, KNOWN[plain](), "table")


def _directory(teacher: str) -> Path | None:
    """The directory with the teacher's config.json on this machine, or None."""
    if teacher.startswith("builtin:"):
        return resolve(teacher).path
    if Path(teacher).is_dir():
        return Path(teacher)
    cached = try_to_load_from_cache(teacher, "config.json") if REPOSITORY.fullmatch(teacher) else None
    return Path(cached).parent if isinstance(cached, str) else None


def kept_layers(student: StudentConfig, layers: int) -> tuple[int, ...]:
    """Layers that keep attention; where a selector is to choose, the first ones stand for those it will choose.

    Raises UsageError for layers that the teacher does not have.
    """
    kept = attention_layers(student, layers)
    return tuple(range(kept)) if isinstance(kept, int) else kept


def with_attention(config: HybridConfig, kept: tuple[int, ...]) -> HybridConfig:
    """The configuration with softmax attention in the layers `kept`."""
    changed = copy.deepcopy(config)
    changed.layer_types = [ATTENTION if i in kept else name for i, name in enumerate(config.layer_types or ())]
    return changed


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost of one layer of a type, per token."""

    mixing_flops: float
    """Products of a forward pass besides those with weights: attention (causal: half of all pairs) or recurrence."""
    saved_bytes: float
    """Bytes that the whole layer keeps for the backward pass, weights apart."""
    mixer_saved_bytes: float
    """Bytes that the mixer alone keeps for the backward pass."""
    state_bytes: int
    """Bytes of a mixer's full state for one row; 0 for attention, which has a KV cache."""


def _saved_bytes(module: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a pass, each storage once, without the weights of `module`."""
    held: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    return sum(storage.nbytes() for key, storage in held.items() if key not in weights)


def layer_cost(config: HybridConfig, layer_type: str, length: int) -> LayerCost:
    """Cost of a layer of this type in rows of `length` tokens, float32, its mixer in plain PyTorch."""
    one = copy.deepcopy(config)
    one.num_hidden_layers, one.layer_types, one._attn_implementation = 1, [layer_type], "sdpa"
    with FakeTensorMode():
        layer = HybridDecoderLayer(one, 0)
        windowed = layer_type == ATTENTION or layer.mixer.starts_as_attention
        probe = length if windowed else min(length, PROBE_TOKENS)
        x = torch.empty(1, probe, one.hidden_size, requires_grad=True)
        positions = (torch.empty(1, probe, one.head_dim),) * 2
        whole = _saved_bytes(layer, lambda: layer(x, None, None, None, positions, None)) / probe
        if layer_type == ATTENTION:
            return LayerCost(2.0 * length * one.num_attention_heads * one.head_dim, whole, whole, 0)
        mixer = layer.mixer
        alone = _saved_bytes(mixer, lambda: mixer(x, position_embeddings=positions)) / probe
        # torch's counter knows attention only as matrix products, or as kernels of a GPU.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, state = mixer(x, position_embeddings=positions)
        parts = [getattr(state, part.name) for part in dataclasses.fields(state)]
    projections = sum(module.weight.numel() for module in mixer.modules() if isinstance(module, nn.Linear))
    mixing = counter.get_total_flops() / probe - 2 * projections
    return LayerCost(mixing, whole, alone, sum(part.nbytes for part in parts if isinstance(part, Tensor)))


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a model by group in `recipe.settings.GROUPS`; tied ones count once."""

    all: dict[str, int]
    matrices: dict[str, int]
    """Those that every token is multiplied with: matrices, without the embedding."""

    @property
    def total(self) -> int:
        """Parameters of all groups."""
        return sum(self.all.values())

    def trained(self, frozen: tuple[str, ...]) -> int:
        """Number of parameters outside the groups `frozen`."""
        return sum(count for group, count in self.all.items() if group not in frozen)


def weights_of(config: HybridConfig) -> Weights:
    """The parameters of this configuration's model, counted on the model itself."""
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    everything: Counter[str] = Counter()
    matrices: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        group = group_of(name)
        everything[group] += parameter.numel()
        if parameter.ndim == 2 and group != "embedding":
            matrices[group] += parameter.numel()
    return Weights(dict(everything), dict(matrices))
