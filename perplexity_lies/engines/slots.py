"""A batch that rows enter and leave while it decodes; its rows have different lengths.

Keys and values are right-aligned in buffers with one slot per row, so all rows write their next token at the same place and a
step copies nothing. When a row leaves, its slot is free; the row that takes the slot is copied in so that it ends where the
others end. Positions before a row's first token are masked. Recurrent and convolution states have a fixed size and are
overwritten whole. No pad token is run.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from perplexity_lies.engines.base import CannotShare
from perplexity_lies.engines.state import GROWING, is_fixed_size, layer_tensors, rebuild, state_argument

ROOM_TOKENS = 256
"""Places (tokens) that a buffer gains at least when it grows."""


def check_can_slot(state: Cache) -> None:
    """Raises CannotShare, with the reason, if a layer of `state` cannot be batched in slots."""
    for layer in state.layers:
        if type(layer) not in GROWING and not is_fixed_size(layer):
            raise CannotShare(f"its {type(layer).__name__} cannot stand in slots")


class SlotLayer(DynamicLayer):
    """Keys and values of all slots, in buffers [slots, heads, places, width]; places `begin:end` are in use."""

    def __init__(self, like: DynamicLayer, slots: int) -> None:
        super().__init__()
        _, heads, _, key_width = like.keys.shape
        self.is_sliding = like.is_sliding
        self.dtype, self.device, self.is_initialized = like.keys.dtype, like.keys.device, True
        self.keys = like.keys.new_zeros(slots, heads, 0, key_width)
        self.values = like.values.new_zeros(slots, heads, 0, like.values.shape[-1])
        self.begin = self.end = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token of every slot; returns the keys and values in use."""
        self.keys[:, :, self.end] = key_states[:, :, 0]
        self.values[:, :, self.end] = value_states[:, :, 0]
        self.end += 1
        return self.keys[:, :, self.begin : self.end], self.values[:, :, self.begin : self.end]

    def get_seq_length(self) -> int:
        return self.end - self.begin

    def move(self, begin: int, end: int, places: int) -> None:
        """Copy what is in use to `begin:end` of new buffers with `places` places; what does not fit on the left is dropped."""
        kept = min(self.end, end - begin)  # not from `begin`: a row that just entered may start before it
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], places, old.shape[-1])
            new[:, :, end - kept : end] = old[:, :, self.end - kept : self.end]
            setattr(self, name, new)
        self.begin, self.end = begin, end

    def put(self, slot: int, other: DynamicLayer, row: int) -> None:
        """Copy row `row` of `other` into `slot`, so that it ends where the other slots end."""
        length = other.keys.shape[-2]
        self.keys[slot, :, self.end - length : self.end] = other.keys[row]
        self.values[slot, :, self.end - length : self.end] = other.values[row]


class Slots:
    """The batch: `enter` and `leave` change its rows, `step` decodes one token of each."""

    def __init__(self, model: Any, slots: int) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.slots = slots
        self.lengths = [0] * slots
        """Tokens in each slot's state; 0 for a free slot."""
        self._cache: Cache | None = None
        self._end = self._begin = self._places = 0
        names = inspect.signature(model.forward).parameters
        self._state_name = state_argument(model)
        self._takes_positions = "position_ids" in names
        self._takes_mask = "attention_mask" in names

    def free(self) -> list[int]:
        """The free slots."""
        return [slot for slot, length in enumerate(self.lengths) if not length]

    @torch.inference_mode()
    def enter(self, slot: int, state: Cache, row: int, length: int) -> None:
        """Copy row `row` of a state of `length` tokens into `slot`."""
        if self._cache is None:
            self._cache = self._buffers(state)
        if length > self._end:
            self._move(end=length)
        self.lengths[slot] = length
        for mine, theirs in zip(self._cache.layers, state.layers, strict=True):
            if isinstance(mine, SlotLayer):
                mine.put(slot, theirs, row)
            else:
                for into, come in zip(layer_tensors(mine), layer_tensors(theirs), strict=True):
                    into[slot] = come[row]

    def leave(self, slot: int) -> None:
        """Free a slot."""
        self.lengths[slot] = 0

    @torch.inference_mode()
    def shrink(self) -> dict[int, int]:
        """Drop the free slots; returns old slot -> new slot."""
        kept = [slot for slot, length in enumerate(self.lengths) if length]
        assert self._cache is not None
        index = torch.tensor(kept, device=self.device)
        self._cache.layers = [
            rebuild(layer, lambda tensor: tensor.index_select(0, index)) for layer in self._cache.layers
        ]
        self.lengths = [self.lengths[slot] for slot in kept]
        self.slots = len(kept)
        return {old: new for new, old in enumerate(kept)}

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> torch.Tensor:
        """Run one token per slot (any token for a free slot); returns the logits of the next, [slots, vocabulary]."""
        assert self._cache is not None
        if self._end == self._places:
            self._move(end=self._end)
        self._begin = self._end - max(self.lengths)
        starts = torch.tensor([self._end - length for length in self.lengths], device=self.device)
        places = torch.arange(self._begin, self._end + 1, device=self.device)
        extra: dict[str, Any] = {}
        if self._takes_mask:
            extra["attention_mask"] = (places[None] >= starts[:, None]).long()
        if self._takes_positions:
            extra["position_ids"] = torch.tensor(self.lengths, device=self.device)[:, None]
        for layer in self._cache.layers:
            if isinstance(layer, SlotLayer):
                layer.begin = self._begin
            elif hasattr(layer, "seen"):
                layer.seen = self._end - self._begin
        output = self.model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            use_cache=True,
            **{self._state_name: self._cache},
            **extra,
        )
        self._end += 1
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return output.logits[:, -1]

    def _buffers(self, state: Cache) -> Cache:
        """An empty cache of all slots with the layers of `state`."""
        empty = copy.copy(state)
        empty.layers = [
            SlotLayer(layer, self.slots)
            if type(layer) in GROWING
            else rebuild(layer, lambda tensor: tensor.new_zeros(self.slots, *tensor.shape[1:]))
            for layer in state.layers
        ]
        return empty

    def _move(self, end: int) -> None:
        """Move the rows to larger buffers, ending at `end` or later, without the places that no running row needs."""
        longest = max(*self.lengths, end if end > self._end else 0, 1)
        begin, end, places = 0, longest, longest + max(ROOM_TOKENS, longest // 2)
        assert self._cache is not None
        for layer in self._cache.layers:
            if isinstance(layer, SlotLayer):
                layer.move(begin, end, places)
        self._begin, self._end, self._places = begin, end, places
