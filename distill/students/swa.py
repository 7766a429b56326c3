"""SWA: softmax attention over a sliding window and the first tokens of the document (sinks, arXiv 2309.17453).

A token attends to the `sliding_window` tokens that end with itself and to the first `attention_sinks` of its document.
Everything else is the teacher's attention: projections, QK norm, rotary positions (the true ones, also for sinks), so nothing
differs while a document is no longer than the window. Its state, a `WindowState`, has one size from the first token on.
Attention is torch's scaled_dot_product_attention, whatever the model's `attn_implementation` is for its kept layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from distill.students.base import Mixer, MixerConfig, Positions


@dataclass(frozen=True, slots=True)
class WindowState:
    """Keys and values of the sinks, then of the window, its last token last; slots not filled yet may hold anything."""

    keys: Tensor
    """[batch, kv_heads, sinks + window, head_dim], rotated; before the first token there are no slots."""
    values: Tensor
    seen: Tensor
    """[batch, 1] int64: tokens of the document so far."""


class SlidingWindowAttention(Mixer):
    """The mixer `swa`."""

    starts_as_attention = True

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        if not config.sliding_window or config.sliding_window < 1 or config.attention_sinks < 0:
            raise ValueError(f"sliding_window must be at least 1, found {config.sliding_window}; sinks not negative")
        self.window, self.sinks = config.sliding_window, config.attention_sinks
        norm = config.qk_norm
        self.q_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps) if norm else nn.Identity()
        self.k_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps) if norm else nn.Identity()

    def empty_state(self, batch: int, device: torch.device) -> WindowState:
        """The state before the first token; see `Mixer.empty_state`."""
        none = torch.zeros((batch, self.kv_heads, 0, self.head_dim), device=device, dtype=self.k_proj.weight.dtype)
        return WindowState(none, none, torch.zeros((batch, 1), dtype=torch.int64, device=device))

    def mix(
        self,
        x: Tensor,
        state: WindowState,
        segments: Tensor | None,
        counts: Tensor | None,
        position_embeddings: Positions | None,
    ) -> tuple[Tensor, WindowState]:
        """See `Mixer.mix`. Raises ValueError without position embeddings."""
        if position_embeddings is None:
            raise ValueError("sliding-window attention needs position embeddings")
        batch, time, _ = x.shape
        q, k, v = (p(x).view(batch, time, -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        attend = self._token_by_token if self.naive else self._at_once
        o, state = attend(q, k, v, state, segments, counts)
        return self.o_proj(o.transpose(1, 2).flatten(2).to(x.dtype)), state

    def _at_once(
        self, q: Tensor, k: Tensor, v: Tensor, state: WindowState, segments: Tensor | None, counts: Tensor | None
    ) -> tuple[Tensor, WindowState]:
        """Queries in blocks, each with the sinks of its first document and the keys of its window: linear in time."""
        places, old = self._places(state.seen, q.shape[2], segments), self._slot_places(state)
        keys, values = torch.cat((state.keys.to(k), k), 2), torch.cat((state.values.to(v), v), 2)
        of_keys, of_documents = torch.cat((old, places), 1), None
        if segments is not None:
            of_documents = torch.cat((segments[:, :1].expand_as(old), segments), 1)
        size, outputs = max(self.window, self.config.chunk_size), []
        for start in range(0, q.shape[2], size):
            block = slice(start, min(start + size, q.shape[2]))
            index, fresh = self._within_reach(block, places, old.shape[1])
            place = of_keys.gather(1, index)[:, None]
            distance = places[:, block, None] - place
            near = (distance < self.window) | (place < self.sinks)
            seen = fresh[:, None] & (place >= 0) & (distance >= 0) & near
            if segments is not None and of_documents is not None:
                seen &= segments[:, block, None] == of_documents.gather(1, index)[:, None]
            wanted = index[:, None, :, None].expand(-1, self.kv_heads, -1, self.head_dim)
            outputs.append(self._attention(q[:, :, block], keys.gather(2, wanted), values.gather(2, wanted), seen))
        length = places[:, -1:] + 1 if counts is None else state.seen + counts[:, None]
        return torch.cat(outputs, 2), self._kept(state, keys, values, places[:, -1:], length)

    def _within_reach(self, block: slice, places: Tensor, old: int) -> tuple[Tensor, Tensor]:
        """The keys that a block of queries may see, as indices [batch, n] into the state's slots and the columns after them.

        And whether each counts, [batch, n] bool: a sink that also lies in the block's window stands there twice. The sinks
        are those of the block's first document; those of later documents lie inside the block.
        """
        begin = max(0, old + block.start - self.window + 1)
        window = torch.arange(begin, old + block.stop, device=places.device).expand(len(places), -1)
        number = torch.arange(self.sinks, device=places.device)
        column = block.start - places[:, block.start, None] + number
        sinks = torch.where(column >= 0, old + column, number).clamp_max(old + block.stop - 1)
        return torch.cat((sinks, window), 1), torch.cat((sinks < begin, torch.ones_like(window, dtype=torch.bool)), 1)

    def _token_by_token(
        self, q: Tensor, k: Tensor, v: Tensor, state: WindowState, segments: Tensor | None, counts: Tensor | None
    ) -> tuple[Tensor, WindowState]:
        """The definition: each token enters the state, then attends to everything in it."""
        outputs = []
        for t in range(q.shape[2]):
            if segments is not None and t > 0:
                same = segments[:, t : t + 1] == segments[:, t - 1 : t]
                state = WindowState(state.keys, state.values, state.seen * same)
            keys, values = (
                torch.cat((state.keys.to(k), k[:, :, t : t + 1]), 2),
                torch.cat((state.values.to(v), v[:, :, t : t + 1]), 2),
            )
            length = state.seen + (1 if counts is None else (t < counts)[:, None])
            state = self._kept(state, keys, values, state.seen, length)
            filled = self._slot_places(state)[:, None] >= 0
            outputs.append(self._attention(q[:, :, t : t + 1], state.keys.to(q), state.values.to(q), filled))
        return torch.cat(outputs, 2), state

    def _attention(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        keys, values = (h.repeat_interleave(self.heads // self.kv_heads, 1) for h in (keys, values))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None], scale=self.head_dim**-0.5)

    def _places(self, seen: Tensor, time: int, segments: Tensor | None) -> Tensor:
        """Place of each new token in its document, [batch, time]; the first document continues from the state."""
        index = torch.arange(time, device=seen.device).expand(len(seen), -1)
        if segments is None:
            return seen + index
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
        start = torch.where(begins, index, 0).cummax(1).values
        return index - start + seen * (segments == segments[:, :1])

    def _slot_places(self, state: WindowState) -> Tensor:
        """Place in its document of the token in each slot, [batch, slots]; -1 for an empty slot."""
        if not state.keys.shape[2]:
            return state.seen.new_zeros(len(state.seen), 0)
        sinks = torch.arange(self.sinks, device=state.seen.device)
        window = state.seen - self.window + torch.arange(self.window, device=state.seen.device)
        filled = torch.where(sinks < state.seen, sinks, -1), torch.where(window >= self.sinks, window, -1)
        return torch.cat(filled, 1)

    def _kept(self, state: WindowState, keys: Tensor, values: Tensor, last: Tensor, length: Tensor) -> WindowState:
        """The state after `length` [batch, 1] tokens of the document, from the old slots and the new tokens after them.

        `last` [batch, 1]: place of the last column, which may be padding.
        """
        slots = torch.arange(self.window, device=keys.device) + length - self.window
        sinks = torch.arange(self.sinks, device=keys.device).expand(len(slots), -1)
        wanted = torch.cat((sinks, slots), 1)
        old, columns = state.keys.shape[2], keys.shape[2]
        among_new = columns - 1 - last + wanted
        among_old = torch.where(wanted < self.sinks, wanted, wanted - state.seen + self.window + self.sinks)
        index = torch.where(among_new >= old, among_new, among_old).clamp(0, columns - 1)
        index = index[:, None, :, None].expand(-1, self.kv_heads, -1, self.head_dim)
        stored = self.k_proj.weight.dtype
        return WindowState(keys.gather(2, index).to(stored), values.gather(2, index).to(stored), length)
