"""Faults planted in the slots and buffers that rows decode in: they show only in a batch that rows enter and leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from perplexity_lies.engines import generation, slots
from perplexity_lies.engines.torch import TorchEngine

from .faults import Break, around


def in_steps(change: Callable[[dict[str, Any]], None]) -> Break:
    """Change the arguments of every step of the slots."""

    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        def of_step(given: dict[str, Any]) -> None:
            if given["input_ids"].shape[1] == 1 and "attention_mask" in given:
                change(given)

        around(engine.model, of_step)

    return plant


def moved_positions(given: dict[str, Any]) -> None:
    given["position_ids"] = given["position_ids"] + 1


def one_place_too_wide(given: dict[str, Any]) -> None:
    mask = given["attention_mask"]
    given["attention_mask"] = (mask + mask.roll(-1, 1)).clamp(max=1)


def first_token_hidden(given: dict[str, Any]) -> None:
    mask = given["attention_mask"]
    given["attention_mask"] = mask * mask.roll(1, 1)


def longest_positions(given: dict[str, Any]) -> None:
    given["position_ids"] = given["position_ids"].max().expand_as(given["position_ids"]).clone()


def window_ignored(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    """Steps see everything; the prompt keeps to its window."""
    forward = engine.model.forward

    def wide(*args: Any, **given: Any) -> Any:
        config = engine.model.config
        before = config.sliding_window
        config.sliding_window = 10_000 if given["input_ids"].shape[1] == 1 else before
        try:
            return forward(*args, **given)
        finally:
            config.sliding_window = before

    engine.model.forward = wide


def after_begin(patch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    """Replace a method of `Slots`: `change(original, slots, begun, *args)`; `begun`: whether a step was made."""
    original, step = getattr(slots.Slots, name), slots.Slots.step

    def counting(self: Any, tokens: list[int]) -> torch.Tensor:
        self.begun = True
        return step(self, tokens)

    @torch.inference_mode()
    def changed(self: Any, *args: Any, **given: Any) -> Any:
        return change(original, self, getattr(self, "begun", False), *args, **given)

    patch.setattr(slots.Slots, "step", counting)
    patch.setattr(slots.Slots, name, changed)


def late_rows_keep_an_old_state(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    def enter(original: Any, self: Any, begun: bool, slot: int, state: Any, row: int, length: int) -> None:
        kept = [
            [tensor.clone() for tensor in slots.layer_tensors(layer)] if not isinstance(layer, slots.SlotLayer) else []
            for layer in (self._cache.layers if self._cache else [])
        ]
        original(self, slot, state, row, length)
        if begun:
            for layer, tensors in zip(self._cache.layers, kept, strict=True):
                if tensors:
                    for into, old in zip(slots.layer_tensors(layer), tensors, strict=True):
                        into[slot] = old[slot]

    after_begin(patch, "enter", enter)


def late_rows_enter_one_short(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    def enter(original: Any, self: Any, begun: bool, slot: int, state: Any, row: int, length: int) -> None:
        original(self, slot, state, row, length)
        if begun:
            self.lengths[slot] = length - 1

    after_begin(patch, "enter", enter)


def shrink_mixes_lengths(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    def shrink(original: Any, self: Any, begun: bool) -> Any:
        moved = original(self)
        self.lengths = self.lengths[::-1] if len(self.lengths) > 1 else [self.lengths[0] - 1]
        return moved

    after_begin(patch, "shrink", shrink)


def shrink_forgets(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """The states of the last layer begin anew when the batch shrinks."""

    def shrink(original: Any, self: Any, begun: bool) -> Any:
        moved = original(self)
        for tensor in slots.layer_tensors(self._cache.layers[-1]):
            tensor.zero_()
        return moved

    after_begin(patch, "shrink", shrink)


def growth_drops_a_token(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    move = slots.SlotLayer.move

    @torch.inference_mode()
    def dropping(self: Any, begin: int, end: int, places: int) -> None:
        grown = self.end > 0
        move(self, begin, end, places)
        if grown:
            self.keys[:, :, end - 1] = 0

    patch.setattr(slots.SlotLayer, "move", dropping)


def growth_forgets_the_beginning(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    move = slots.SlotLayer.move

    @torch.inference_mode()
    def dropping(self: Any, begin: int, end: int, places: int) -> None:
        grown = self.end > 0
        move(self, begin, end, places)
        if grown:
            self.values[:, :, : end - 40] = 0

    patch.setattr(slots.SlotLayer, "move", dropping)


def prompts_kept_by_length(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """A prefix cache whose key is the length of a prompt: late rows get the state of another prompt as long."""

    def enter(original: Any, self: Any, begun: bool, slot: int, state: Any, row: int, length: int) -> None:
        self.seen = getattr(self, "seen", {})
        kept = self.seen.setdefault(length, (state, row))
        original(self, slot, *(kept if begun else (state, row)), length)

    after_begin(patch, "enter", enter)


def rows_of_half_a_batch(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """A batch with a free slot reads the logits of the neighbouring rows."""
    choose = generation.choose
    patch.setattr(
        generation, "choose", lambda logits, rows: choose(logits.roll(1, 0) if len(rows) == 2 else logits, rows)
    )
