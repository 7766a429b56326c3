"""Generation with continuous batching: prompts enter free slots, all slots decode together, a row that ends leaves at once.

Prompts with a common prefix compute it once. The plan is the scorer's prefix tree, walked depth first; the state at a branch
point is kept until the last prompt below it has its slot. Prompts of equal length below one branch point are prefilled
together. Each sampled row has its own random generator, so a row's text does not depend on the rest of the batch.

`generate_by_length` is the plain path for checkpoints whose state cannot be batched in slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from perplexity_lies.engines.base import CannotShare, Finished, GenerateResult
from perplexity_lies.engines.decoding import Row, advance, choose, result_of
from perplexity_lies.engines.prefix_tree import Input, Node, plan
from perplexity_lies.engines.scoring import Budget, fork, run_chunks, state_after
from perplexity_lies.engines.slots import Slots
from perplexity_lies.engines.state import bytes_of, gather, run_on, state_of, table_tokens

Prefilled = tuple[Any, torch.Tensor, list[Row]]
"""The state after some prompts, the logits of their next tokens [rows, vocabulary], and their rows."""


def generate_in_slots(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    end_ids: frozenset[int],
    context_tokens: int,
    budget: Budget,
    finished: Finished,
) -> Iterator[list[GenerateResult]]:
    """Results as rows end. Rows whose result is on disk already (`finished`) are not run."""
    yield from _Batch(model, tokenizer, end_ids, context_tokens, budget).run(_waiting(rows, finished))


def generate_by_length(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    end_ids: frozenset[int],
    context_tokens: int,
    budget: Budget,
    finished: Finished,
    again_at: int | None = None,
    cached: bool = True,
) -> Iterator[list[GenerateResult]]:
    """The plain path: batches of prompts of one length, each batch decoded until all its rows have ended.

    At `again_at` tokens the state is dropped and recomputed from all tokens so far (a rotary embedding changes there). Unless
    `cached`, or where the model returns no state, the whole sequence runs again for every token.
    """
    batch_of: dict[int, list[Row]] = {}
    for row in sorted(_waiting(rows, finished), key=lambda row: -len(row.prompt_ids)):
        batch_of.setdefault(len(row.prompt_ids), []).append(row)
    end = table_tokens(model, context_tokens)
    for length, of_length in batch_of.items():
        width = max(1, min(budget.rows, budget.batch_tokens // length))
        for start in range(0, len(of_length), width):
            batch = of_length[start : start + width]
            _to_the_end(model, tokenizer, batch, end_ids, end, again_at, cached)
            yield [result_of(row, tokenizer, context_tokens) for row in batch]


@torch.inference_mode()
def _to_the_end(
    model: Any,
    tokenizer: Any,
    batch: Sequence[Row],
    end_ids: frozenset[int],
    positions_end: int | None,
    again_at: int | None,
    cached: bool,
) -> None:
    """Decode rows of one length together until all have ended; tokens of a row after its end are ignored."""
    device = next(model.parameters()).device
    read = tokens = torch.tensor([row.prompt_ids for row in batch], device=device)
    state = None
    while any(row.finish_reason is None for row in batch):
        if state is None:
            output = run_on(model, read, None, 0, use_cache=cached)
        else:
            output = run_on(model, tokens, state, read.shape[1] - 1, use_cache=True)
        try:
            state = state_of(output) if cached else None
        except CannotShare:
            cached = False
        if read.shape[1] == again_at:
            state = None
        for row, token in zip(batch, choose(output.logits[:, -1], batch), strict=True):
            if row.finish_reason is None:
                advance(row, token, tokenizer, end_ids, positions_end)
        tokens = torch.tensor([[row.ids[-1]] for row in batch], device=device)
        read = torch.cat([read, tokens], dim=1)


def _waiting(rows: Sequence[Row], finished: Finished) -> list[Row]:
    """The rows without a result on disk; sampled ones get their random generator."""
    waiting = [row for row in rows if not finished(row.request.key)]
    for row in waiting:
        if row.request.sampling.temperature > 0:
            row.generator = torch.Generator().manual_seed(row.request.seed)
    return waiting


class _Batch:
    """One call of `generate_in_slots`: the rows that run now, by slot."""

    def __init__(
        self, model: Any, tokenizer: Any, end_ids: frozenset[int], context_tokens: int, budget: Budget
    ) -> None:
        self.model, self.tokenizer, self.end_ids, self.budget = model, tokenizer, end_ids, budget
        self.context_tokens = context_tokens
        self.positions_end = table_tokens(model, context_tokens)
        self.running: dict[int, Row] = {}

    def run(self, waiting: Sequence[Row]) -> Iterator[list[GenerateResult]]:
        """Fill the free slots, decode one token in every slot, repeat until no row is left."""
        supply = _Supply(self.model, waiting, self.budget)
        slots: Slots | None = None
        while supply.left or self.running:
            done: list[Row] = []
            while supply.left and (slots is None or len(slots.free()) > 0):
                state, logits, fresh = supply.take(len(slots.free()) if slots else self.budget.rows)
                if slots is None:
                    slots = Slots(self.model, self._slots_for(state, fresh, len(waiting)))
                done += self._seat(slots, state, logits, fresh)
            if done:
                yield [self._result(row) for row in done]
            if not self.running:
                continue
            assert slots is not None
            yield from self._step(slots, more_wait=bool(supply.left))

    def _slots_for(self, state: Any, fresh: Sequence[Row], waiting: int) -> int:
        """How many slots fit the budget, from the bytes of one row's state at its longest."""
        row = fresh[0]
        now = max(1, len(row.prompt_ids))
        one = bytes_of(state) // len(fresh)
        at_most = one * (now + row.request.max_new_tokens) // now
        return max(1, min(self.budget.rows, waiting, self.budget.state_bytes // max(1, at_most)))

    def _seat(self, slots: Slots, state: Any, logits: torch.Tensor, fresh: Sequence[Row]) -> list[Row]:
        """Give each fresh row its first token and a slot. Returns the rows that this token ended, which get no slot."""
        ended = []
        for index, (row, token) in enumerate(zip(fresh, choose(logits, fresh), strict=True)):
            self._advance(row, token)
            if row.finish_reason is not None:
                ended.append(row)
                continue
            slot = slots.free()[0]
            slots.enter(slot, state, index, len(row.prompt_ids))
            self.running[slot] = row
        return ended

    def _step(self, slots: Slots, *, more_wait: bool) -> Iterator[list[GenerateResult]]:
        """Decode one token of every running row; once half the slots are empty for good, drop the empty ones."""
        logits = slots.step([self.running[slot].ids[-1] if slot in self.running else 0 for slot in range(slots.slots)])
        order = sorted(self.running)
        rows = [self.running[slot] for slot in order]
        tokens = choose(logits if len(order) == slots.slots else logits[order], rows)
        done = []
        for slot, row, token in zip(order, rows, tokens, strict=True):
            self._advance(row, token)
            if row.finish_reason is not None:
                done.append(self._result(row))
                slots.leave(slot)
                del self.running[slot]
        if done:
            yield done
        if not more_wait and self.running and len(self.running) * 2 <= slots.slots:
            moved = slots.shrink()
            self.running = {moved[slot]: row for slot, row in self.running.items()}

    def _advance(self, row: Row, token: int) -> None:
        advance(row, token, self.tokenizer, self.end_ids, self.positions_end)

    def _result(self, row: Row) -> GenerateResult:
        return result_of(row, self.tokenizer, self.context_tokens)


class _Supply:
    """Prefilled rows on demand, in the order of a depth-first walk over the tree of their prompts."""

    def __init__(self, model: Any, rows: Sequence[Row], budget: Budget) -> None:
        self.model, self.budget = model, budget
        of_prompt: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            of_prompt.setdefault(row.prompt_ids, []).append(row)
        inputs = [Input(ids, len(ids) - 1) for ids in of_prompt]
        root = plan(inputs, batch_tokens=budget.batch_tokens, most_rows=1)
        self._pending = [(path, row) for path, leaf in _walk(root, ()) for row in of_prompt[leaf.ids]]
        self._states: list[tuple[Node, Any]] = []
        """Branch points above the next row, outermost first, each with its state."""

    @property
    def left(self) -> int:
        """How many rows have not been taken."""
        return len(self._pending)

    @torch.inference_mode()
    def take(self, most: int) -> Prefilled:
        """Prefill up to `most` rows that have one length and one branch point."""
        path, first = self._pending[0]
        state, start = self._state_at(path)
        length = len(first.prompt_ids)
        most = max(1, min(most, self.budget.batch_tokens // (length - start)))
        rows = []
        for other, row in self._pending[:most]:
            if other != path or len(row.prompt_ids) != length:
                break
            rows.append(row)
        del self._pending[: len(rows)]
        prompts = list(dict.fromkeys(row.prompt_ids for row in rows))
        tokens = torch.tensor([ids[start:] for ids in prompts], device=next(self.model.parameters()).device)
        grown, logits = run_chunks(self.model, tokens, fork(state, len(prompts)), start)
        if len(prompts) < len(rows):  # one prompt with several seeds
            index = [prompts.index(row.prompt_ids) for row in rows]
            grown, logits = gather(grown, index), logits[index]
        return grown, logits, rows

    def _state_at(self, path: tuple[Node, ...]) -> tuple[Any, int]:
        """The state at the last branch point of `path`, and its tokens; states of other branches are dropped."""
        while self._states and self._states[-1][0] not in path:
            self._states.pop()
        for node in path[len(self._states) :]:
            state, start = self._last()
            tokens = torch.tensor([node.ids[start : node.stop]], device=next(self.model.parameters()).device)
            self._states.append((node, state_after(self.model, tokens, fork(state, 1), start)))
        return self._last()

    def _last(self) -> tuple[Any, int]:
        """The innermost kept state and its tokens."""
        return (self._states[-1][1], self._states[-1][0].stop) if self._states else (None, 0)


def _walk(node: Node, path: tuple[Node, ...]) -> Iterator[tuple[tuple[Node, ...], Input]]:
    """Every leaf with the branch points above it, depth first; leaves of one branch point from long to short."""
    here = (*path, node) if node.stop else path
    for leaf in sorted(node.leaves, key=lambda leaf: (-len(leaf.ids), leaf.ids)):
        yield here, leaf
    for group in node.groups:
        for child in group.nodes:
            yield from _walk(child, here)
