"""Stored tensors that a model has no place for and does not need: what old transformers saved beside the weights, and eyes.

    needless("transformer.h.0.attn.bias", files, config)      True where it holds a causal mask, which the class makes itself

Decided by what a tensor holds where its name could also be a weight's: `attn.bias` is a mask in GPT-2 of 2019 and would be a
weight elsewhere, and a weight that is dropped makes every number wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

MADE = re.compile(
    r"(^|\.)(rotary(_pos)?_emb\.(inv_freq|cos_cached|sin_cached)|position_ids|embed_positions\._float_tensor|masked_bias)$"
)
"""Buffers that a class computes from its config."""
MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.(bias|mask|causal_mask)$")

EYES = re.compile(
    r"^(model\.)?(vision\w*|visual|image_\w+|multi_modal_projector|mm_projector|audio_\w+|embed_(vision|audio))\."
)
"""Parts that see or hear: no text passes through them."""
SENSES = ("vision_config", "audio_config")


def is_causal_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor of shape [..., n, n] is zero after the diagonal and one on it, as no trained bias is."""
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.shape[-1] < 2 or tensor.numel() == 0:
        return False
    square = tensor.reshape(-1, *tensor.shape[-2:])[0].float()
    return bool(
        (square.triu(1) == 0).all() and (square.diagonal() == 1).all() and ((square == 0) | (square == 1)).all()
    )


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of one safetensors file, by name; reads its header only."""
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping


def _stored(name: str, files: Sequence[Path]) -> torch.Tensor | None:
    """The stored tensor of a name, or of the only one that ends in it or in which it ends: classes add and drop a prefix."""
    found = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # no mapping
                if key == name or key.endswith(f".{name}") or name.endswith(f".{key}"):
                    found.append(file.get_tensor(key))
    return found[0] if len(found) == 1 else None


def needless(name: str, files: Sequence[Path], config: Any) -> bool:
    """Whether a tensor that the model has no place for changes nothing about what it says of text.

    `files`: safetensors that hold it; empty for pickle, whose tensors count by their names alone.
    """
    if EYES.search(name) and any(getattr(config, sense, None) is not None for sense in SENSES):
        return True
    if MADE.search(name):
        return True
    if not MASK.search(name):
        return False
    tensor = _stored(name, files)
    return tensor is not None and is_causal_mask(tensor)
