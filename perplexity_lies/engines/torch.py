"""The torch engine: runs any `AutoModelForCausalLM` checkpoint on CPU or CUDA.

Scoring follows lm-eval's `HFLM` (tokenisation, truncation from the left, greedy flag). Greedy generation gives the same tokens
as HF `generate` on one row at a time. No pad token enters a state that is used again, so results do not depend on the batch,
for recurrent and hybrid checkpoints as for attention.

When a checkpoint is opened, a few tokens are run to see whether its state can be forked (shared prefixes) and batched in slots
(continuous batching). Where it cannot, the engine takes the plain path and logs why.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from perplexity_lies.checkpoint.lookup import Checkpoint
from perplexity_lies.engines import tokens
from perplexity_lies.engines.base import (
    Engine,
    EngineOptions,
    Finished,
    GenerateRequest,
    GenerateResult,
    Message,
    ScoreRequest,
    ScoreResult,
    ShownModel,
    nothing_finished,
    unscored,
)
from perplexity_lies.engines.decoding import Row
from perplexity_lies.engines.device import cpu_threads
from perplexity_lies.engines.generation import generate_by_length, generate_in_slots
from perplexity_lies.engines.held import Held, Spelling
from perplexity_lies.engines.loading import load_model, load_tokenizer
from perplexity_lies.engines.probe import find_fit
from perplexity_lies.engines.scoring import Budget, score_tree
from perplexity_lies.engines.state import border_tokens, table_tokens
from perplexity_lies.errors import CheckpointError

logger = logging.getLogger(__name__)

SMALL_PARAMETERS = 10_000_000
"""A smaller model computes with one CPU thread: a second one made a step take 25 ms instead of 1 ms on two contended cores."""

BATCH_TOKENS = 1024
BATCH_PASSES = 16
"""A batch is cut at BATCH_TOKENS tokens or at BATCH_PASSES times `_forward_tokens`, whichever is more.

A larger batch is no faster; on a CPU it is slower, because its keys no longer fit the caches.
"""

STATE_SHARE = 4
"""Forked states may hold 1/STATE_SHARE of the memory that the weights leave free (RAM on a CPU)."""


class TorchEngine(Engine):
    """A transformers model in this process."""

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.tokenizer = load_tokenizer(checkpoint)
        self.model = load_model(checkpoint, options)
        self.device = next(self.model.parameters()).device
        self.embedded = _embedded(self.model)
        """Token ids below this one have an embedding and a logit."""
        self.end_ids = tokens.end_ids(self.model.generation_config, self.model.config, self.tokenizer, self.embedded)
        self._stated = tokens.context_tokens(self.model.config, self.tokenizer)
        self._table = table_tokens(self.model, self._stated)
        self._weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.threads = 1 if checkpoint.parameters < SMALL_PARAMETERS else torch.get_num_threads()
        self.why_not_shared, self.why_not_slots, self.why_not_cached = find_fit(self.model, self.device)
        for what, why in (
            ("prefixes are not shared", self.why_not_shared),
            ("no continuous batching", self.why_not_slots),
            ("every token of a reply runs the whole sequence again", self.why_not_cached),
        ):
            if why:
                logger.warning("%s: %s: %s", checkpoint.name, what, why)
        _warn_of_unused_generation_settings(self.model)

    @property
    def context_tokens(self) -> int:
        """By lm-eval's rule, except where the table of positions has less room (RoBERTa's kind)."""
        return min(self._stated, self._table or self._stated)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "engine": "torch",
            "device": self.device.type,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "batch_tokens": self.options.batch_tokens,
            "slots": self.options.slots,
            "threads": self.threads,
            "shared_prefixes": not self.why_not_shared,
            "attention": getattr(self.model.config, "_attn_implementation", None) or "none",
        }

    @property
    def shown(self) -> ShownModel:
        return ShownModel(
            model=self.model, dtype=self.settings["dtype"], threads=self.threads, why_not_cached=self.why_not_cached
        )

    @property
    def has_chat_template(self) -> bool:
        return tokens.has_template(self.tokenizer)

    @property
    def why_no_choices(self) -> str:
        return ""

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return tokens.encode(self.tokenizer, text, add_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return tokens.render_chat(self.tokenizer, messages, add_generation_prompt)

    def score(
        self, requests: Sequence[ScoreRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[ScoreResult]]:
        refused = {r.key: unscored(r, why) for r in requests if (why := self._why_not_scored(r))}
        requests = [r for r in requests if r.key not in refused]
        if waiting := [result for key, result in refused.items() if not finished(key)]:
            yield waiting
        longest = max((len(r.context_ids) + len(r.continuation_ids) - 1 for r in requests), default=0)
        border = self._border_below(min(longest, self.context_tokens), "shared prefixes or batches")
        budget = replace(self._budget(), rows=1) if border else self._budget()
        share = not (self.why_not_shared or border)
        with cpu_threads(self.threads), self._memory_told():
            yield from score_tree(self.model, requests, self.context_tokens, budget, finished, share=share)

    def _why_not_scored(self, request: ScoreRequest) -> str:
        ids = (*request.context_ids, *request.continuation_ids)
        return tokens.why_not_scored(request, self.context_tokens) or tokens.why_not_embedded(
            self.tokenizer, ids, self.embedded
        )

    def _border_below(self, tokens: int, without: str) -> tuple[str, int] | None:
        """The rotary embedding's border (`state.border_tokens`) if a row of `tokens` crosses it, else None.

        Logs that the engine goes on without `without`.
        """
        border = border_tokens(self.model.config.get_text_config())
        if border is None or tokens <= border[1]:
            return None
        logger.warning(
            "%s: no %s: its rotary embedding (%s) turns positions otherwise beyond %d tokens, and %d are asked for",
            self.checkpoint.name, without, *border, tokens,
        )  # fmt: skip
        return border

    @contextlib.contextmanager
    def fewer_slots(self, slots: int) -> Iterator[None]:
        before = self.options
        self.options = replace(before, slots=min(slots, before.slots))
        try:
            yield
        finally:
            self.options = before

    @contextlib.contextmanager
    def _memory_told(self) -> Iterator[None]:
        """Raise CheckpointError, saying what to type, when memory runs out and no batch can be halved."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise CheckpointError(
                f"checkpoint {self.checkpoint.name!r} does not fit the memory of {self.device} with what it was asked",
                found=str(error).splitlines()[0][:300],
                mend=["--dtype bfloat16", "--device cpu"],
            ) from error

    def _budget(self) -> Budget:
        forward_tokens = _forward_tokens(self.model, self.device)
        return Budget(
            batch_tokens=min(self.options.batch_tokens, max(BATCH_TOKENS, BATCH_PASSES * forward_tokens)),
            rows=self.options.slots,
            state_bytes=max(0, _memory_bytes(self.device) - self._weight_bytes) // STATE_SHARE,
            forward_tokens=forward_tokens,
        )

    def generate(
        self, requests: Sequence[GenerateRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[GenerateResult]]:
        rows = {request.key: self._row(request) for request in requests}
        refused = [row for row in rows.values() if self._refusal(row)]
        if refused:
            yield [row.refused(self._refusal(row), self.context_tokens) for row in refused]
        runnable = [row for row in rows.values() if not self._refusal(row)]
        longest = max((len(row.prompt_ids) + row.request.max_new_tokens - 1 for row in runnable), default=0)
        given = (self.model, self.tokenizer, runnable, self.end_ids, self.context_tokens, self._budget(), finished)
        with cpu_threads(self.threads), self._memory_told():
            if border := self._border_below(longest, "continuous batching"):
                # HF `generate` recomputes the state at the border for longrope only.
                again_at = border[1] if border[0] == "longrope" else None
                yield from generate_by_length(*given, again_at=again_at, cached=not self.why_not_cached)
            elif self.why_not_slots:
                yield from generate_by_length(*given, cached=not self.why_not_cached)
            else:
                yield from generate_in_slots(*given)

    def _row(self, request: GenerateRequest) -> Row:
        ids = self.encode(request.prompt, request.add_special_tokens)
        kept = tokens.keep_last(ids, request.max_prompt_tokens)
        held = Held(request.choices, self._spelling, self.end_ids) if request.choices else None
        return Row(request=request, prompt_ids=tuple(kept), truncated_tokens=len(ids) - len(kept), held=held)

    @functools.cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.tokenizer, self.embedded)

    def _refusal(self, row: Row) -> str:
        """Why the row cannot be run; empty when it can."""
        if not row.prompt_ids:
            return "the prompt has no tokens"
        if self._table is not None and len(row.prompt_ids) >= self._table:
            return f"the prompt has {len(row.prompt_ids)} tokens and the checkpoint {self._table} positions"
        return tokens.why_not_embedded(self.tokenizer, row.prompt_ids, self.embedded)


def _memory_bytes(device: torch.device) -> int:
    """Total memory of a device, used or free: the same in every run on one machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _embedded(model: transformers.PreTrainedModel) -> int:
    """How many tokens have an embedding and a logit."""
    found = [
        getattr(module, "weight", None) for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    rows = [int(weight.shape[0]) for weight in found if isinstance(weight, torch.Tensor) and weight.ndim == 2]
    return min([*rows, *([] if rows else [int(model.config.get_text_config().vocab_size)])])


def _forward_tokens(model: transformers.PreTrainedModel, device: torch.device) -> int:
    """Fixed cost of a forward pass (launching layers, reading weights for few rows), in tokens' worth of time.

    Estimated from the model's size. A wrong estimate costs speed and changes no result.
    """
    config = model.config.get_text_config()
    launch_s, flops_per_s, few_rows = (1e-3, 2e14, 0) if device.type == "cuda" else (2.5e-4, 8e10, 40)
    embedding = config.vocab_size * config.hidden_size
    flops = 2 * max(1, model.num_parameters() - embedding)
    layers = getattr(config, "num_hidden_layers", 12)
    return few_rows + min(4096, int(layers * launch_s * flops_per_s / flops))


def _warn_of_unused_generation_settings(model: transformers.PreTrainedModel) -> None:
    """Log the checkpoint's generation settings that would change a greedy reply: they are not used here."""
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": None, "suppress_tokens": None}
    found = {
        name: getattr(model.generation_config, name, None)
        for name, value in neutral.items()
        if getattr(model.generation_config, name, None) not in (value, None)
    }
    if found:
        logger.warning("generation_config.json asks for %s; the suite's protocol settings are used instead", found)
