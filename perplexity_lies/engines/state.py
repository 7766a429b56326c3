"""The state of a batch of sequences, for attention, recurrent and hybrid checkpoints alike.

    gather(state, [0, 0, 2])  ->  a new state of three rows: row 0 twice (a fork) and row 2

transformers keeps a model's state in a `Cache` of layers: keys and values, a sliding window of them, recurrent and convolution
states, or a mix. The first dimension of every tensor is the batch, so one operation is enough: rebuild the layer with rows of
its tensors picked.

A mixer of your own defines its state in its own file: a cache layer whose tensors (attributes, in dictionaries or in
dataclasses) have the batch first. Set `fixed_size_state = True` on its class when none of them grows with the sequence. It may
count its tokens in `seen`.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from perplexity_lies.engines.base import CannotShare

GROWING = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers with keys and values [rows, heads, time, width] only."""

COUNT_FROM_PAD = frozenset(
    {"roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "data2vec-text"}
)
"""Model types that count positions from their pad token's id on, and after a state by themselves."""

TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|positions_embed)(\.weights?)?$")
"""Names of the tables of positions in transformers' models."""

NOT_TEXT = re.compile("vision|visual|image|audio|speech|tower")
"""In the names of what reads something else than text."""

MIXED = (LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)
"""Cache layers with keys and values and a recurrent state."""


def state_argument(model: Any) -> str:
    """The argument of the model's forward that takes its state."""
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


def state_of(output: Any) -> Any:
    """The state in a forward pass's output. Raises CannotShare when there is none."""
    for name in ("past_key_values", "cache_params"):
        state = getattr(output, name, None)
        if state is not None:
            return state
    raise CannotShare(f"{type(output).__name__} carries no state")


def run_on(model: Any, tokens: torch.Tensor, state: Any, start: int, **given: Any) -> Any:
    """One forward pass over `tokens` [rows, time], which follow the `start` tokens that `state` holds.

    Position ids are stated wherever the model takes them: some models (Bamba) count from 0 again without them, whatever their
    state holds. At the beginning every model counts by itself.
    """
    counts = model.config.model_type not in COUNT_FROM_PAD
    if start and counts and "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand(tokens.shape)
    if state is not None:
        given[state_argument(model)] = state
    return model(input_ids=tokens, **given)


def table_tokens(model: Any, context_tokens: int) -> int | None:
    """The most tokens that the model's table of positions has room for; None where it has no table, or one beyond any context.

    A model with a table cannot run a token past its end. GPT-2's and BERT's is learned, GPT-J's and RoFormer's is of sines.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    tables = [table for name, table in named if TABLE.search(name) and not NOT_TEXT.search(name)]
    rows = [int(table.shape[0]) for table in tables if table.ndim == 2]
    first = 1 + int(model.config.pad_token_id or 0) if model.config.model_type in COUNT_FROM_PAD else 0
    return min(context_tokens, min(rows) - first) if rows else None


def border_tokens(config: PretrainedConfig) -> tuple[str, int] | None:
    """Kind and border of a rotary embedding that rotates every position differently once a batch is longer than the border.

    None for any other. A state from before the border is wrong after it, and one long row changes all rows of its batch.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    for rope in (stated, *stated.values()):  # one for all layers, or one per layer type
        kind = rope.get("rope_type", "") if isinstance(rope, dict) else ""
        if kind == "longrope":
            return kind, int(rope["original_max_position_embeddings"])
        if "dynamic" in kind:
            return kind, int(config.max_position_embeddings)
    return None


def is_fixed_size(layer: Any) -> bool:
    """Whether the layer's state has one size whatever the length of the sequence, or is empty."""
    return type(layer) in (LinearAttentionLayer, DummyLayer) or getattr(type(layer), "fixed_size_state", False)


def check_can_fork(state: Any) -> None:
    """Raises CannotShare, with the reason, if `state` has a layer of an unknown kind."""
    if not isinstance(state, Cache):
        raise CannotShare(f"its state is a {type(state).__name__}, not a transformers Cache")
    outside = sorted(name for name, value in vars(state).items() if name != "layers" and _holds_tensors(value))
    if outside:
        raise CannotShare(f"its {type(state).__name__} keeps {', '.join(outside)} beside its layers")
    for layer in state.layers:
        if type(layer) not in (*GROWING, *MIXED) and not is_fixed_size(layer):
            raise CannotShare(f"nothing is known of the state in its {type(layer).__name__}")


def _holds_tensors(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, torch.Tensor) for part in parts)


def gather(state: Cache, rows: Sequence[int]) -> Cache:
    """A new state whose row i is row `rows[i]` of `state`. Writing to one does not change the other."""
    index = torch.tensor(list(rows), device=next(tensors_of(state)).device)
    one_row = rows_of(state) == 1

    def pick(layer: Any) -> Any:
        if one_row and type(layer) in GROWING:  # grows by concatenation, so a view is never written to
            return rebuild(layer, lambda tensor: tensor.expand(len(index), *tensor.shape[1:]))
        return rebuild(layer, lambda tensor: tensor.index_select(0, index))

    picked = copy.copy(state)
    picked.layers = [pick(layer) for layer in state.layers]
    return picked


def rebuild(layer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of the layer with `change` applied to each batched tensor; the original stays as it is."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        setattr(twin, name, _changed(value, change))
    return twin


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value) if value.ndim > 1 else value
    if isinstance(value, dict):
        return {key: _changed(inner, change) for key, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: _changed(part, change) for name, part in _fields(value).items()})
    return value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def tensors_of(state: Cache) -> Iterator[torch.Tensor]:
    """Every batched tensor of a state."""
    for layer in state.layers:
        yield from layer_tensors(layer)


def layer_tensors(layer: Any) -> Iterator[torch.Tensor]:
    """Every batched tensor of a layer, always in the same order."""
    pending = list(vars(layer).values())
    while pending:
        value = pending.pop(0)
        if isinstance(value, torch.Tensor) and value.ndim > 1:
            yield value
        elif isinstance(value, dict):
            pending[:0] = value.values()
        elif dataclasses.is_dataclass(value):
            pending[:0] = _fields(value).values()


def rows_of(state: Cache) -> int:
    """Number of sequences in a state."""
    return int(next(tensors_of(state)).shape[0])


def bytes_of(state: Cache) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))
