"""Faults of an engine, planted on purpose, each with the check that must name it; and engines seen from outside only."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from perplexity_lies.engines import generation, scoring
from perplexity_lies.engines.base import (
    Engine,
    GenerateRequest,
    GenerateResult,
    Message,
    ScoreRequest,
    ScoreResult,
    ShownModel,
)
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import MissingError
from perplexity_lies.guard import Guarded

Break = Callable[[pytest.MonkeyPatch, TorchEngine], None]


def around(model: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the arguments of every forward pass."""
    forward = model.forward

    @functools.wraps(forward)
    def changed(*args: Any, **given: Any) -> Any:
        change(given)
        return forward(*args, **given)

    model.forward = changed


def mask_dropped_in_generation(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    def drop(given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] == 1:
            given.pop("attention_mask", None)

    around(engine.model, drop)


def state_leaks_between_rows(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    """The recurrent state of each row of a batch is, after a step, partly its neighbour's."""
    for layer in engine.model.model.layers:
        if hasattr(layer, "mixer"):
            forward = layer.mixer.forward

            def leaking(x: torch.Tensor, forward: Any = forward, **given: Any) -> Any:
                out, state = forward(x, **given)
                return out, dataclasses.replace(state, recurrent=(state.recurrent + state.recurrent.roll(1, 0)) / 2)

            layer.mixer.forward = leaking


def convolution_not_forked(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """A fork takes keys, values and recurrent states along and begins the convolution anew."""
    gather = scoring.gather

    def forgetting(state: Any, rows: Sequence[int]) -> Any:
        forked = gather(state, rows)
        for layer in forked.layers:
            if hasattr(layer, "state"):
                layer.state = dataclasses.replace(layer.state, conv=torch.zeros_like(layer.state.conv))
        return forked

    patch.setattr(scoring, "gather", forgetting)


def convolution_shared_by_forks(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """transformers writes its convolution states in place: a fork of one row that is no copy writes into its stem."""
    gather = scoring.gather

    def aliasing(state: Any, rows: Sequence[int]) -> Any:
        forked = gather(state, rows)
        for mine, theirs in zip(forked.layers, state.layers, strict=True):
            conv = getattr(theirs, "conv_states", None)
            if conv is not None and len(rows) == 1:
                mine.conv_states = conv
        return forked

    patch.setattr(scoring, "gather", aliasing)


def positions_begin_anew_after_a_fork(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    def restart(given: dict[str, Any]) -> None:
        rows, width = given["input_ids"].shape
        if given.get("past_key_values") is not None and width > 1:
            given["position_ids"] = torch.arange(width).expand(rows, width)

    around(engine.model, restart)


def logits_shifted_in_the_scorer(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    read = scoring._read
    patch.setattr(scoring, "_read", lambda chunks, reads: read([torch.cat(list(chunks)).roll(1, 0)], reads))


def logits_shifted_in_the_model(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    engine.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits.roll(1, 1))


def end_token_ignored(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    engine.end_ids = frozenset()


class LeftPadding(TorchEngine):
    """Generation as a static batch, padded on the left with nothing to tell the recurrence so."""

    def generate(self, requests: Sequence[GenerateRequest], *_: Any) -> Iterator[list[GenerateResult]]:
        rows = [self._row(request) for request in requests]
        width, state = max(len(row.prompt_ids) for row in rows), None
        tokens = torch.tensor([[2] * (width - len(row.prompt_ids)) + list(row.prompt_ids) for row in rows])
        with torch.inference_mode():
            while any(row.finish_reason is None for row in rows):
                output = self.model(input_ids=tokens, past_key_values=state, use_cache=True)
                state, tokens = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
                for row, token in zip(rows, tokens[:, 0].tolist(), strict=True):
                    if row.finish_reason is None:
                        generation.advance(row, token, self.tokenizer, self.end_ids, None)
        yield [generation.result_of(row, self.tokenizer, self.context_tokens) for row in rows]


class TemplateTwice(TorchEngine):
    """A rendered chat is taken for a message and rendered again."""

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        once = super().render_chat(messages, add_generation_prompt)
        return super().render_chat([{"role": "user", "content": once}], add_generation_prompt)


class MixingCache(TorchEngine):
    """A prefix cache that looks at the beginning of a prompt only, and hands out what another prompt left there."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.first: dict[str, str] = {}

    def generate(self, requests: Sequence[GenerateRequest], *rest: Any) -> Iterator[list[GenerateResult]]:
        for request in requests:
            prompt = self.first.setdefault(request.prompt[:60], request.prompt)
            for batch in super().generate([dataclasses.replace(request, prompt=prompt)], *rest):
                yield [dataclasses.replace(result, key=request.key) for result in batch]


class StaleCache(TorchEngine):
    """Log-likelihoods are kept by their tokens, whatever the weights have become."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: dict[str, ScoreResult] = {}

    def score(self, requests: Sequence[ScoreRequest], *rest: Any) -> Iterator[list[ScoreResult]]:
        fresh = [request for request in requests if request.key not in self.kept]
        self.kept |= {result.key: result for batch in super().score(fresh, *rest) for result in batch}
        yield [self.kept[request.key] for request in requests]


FAULTS: dict[str, tuple[str, Break | type[TorchEngine], str]] = {
    "attention mask dropped in generation": ("llama", mask_dropped_in_generation, "padding"),
    "left padding fed to the recurrence": ("pure-kda", LeftPadding, "padding"),
    "state leaking between rows": ("hybrid-kda", state_leaks_between_rows, "batch size"),
    "convolution state not forked": ("hybrid-kda", convolution_not_forked, "shared prefixes"),
    "convolution state not forked, in place": ("qwen3_next", convolution_shared_by_forks, "prompt isolation"),
    "wrong position ids after a fork": ("llama", positions_begin_anew_after_a_fork, "shared prefixes"),
    "wrong position ids after a fork, hybrid": ("hybrid-kda", positions_begin_anew_after_a_fork, "shared prefixes"),
    "logits shifted by one in the scorer": ("llama", logits_shifted_in_the_scorer, "scored position"),
    "logits shifted by one in the model": ("llama", logits_shifted_in_the_model, "cached against full"),
    "chat template applied twice": ("llama", TemplateTwice, "chat template"),
    "end token ignored": ("llama", end_token_ignored, "end token"),
    "prefix cache mixing two prompts": ("hybrid-kda", MixingCache, "prompt isolation"),
}
"""Fault -> the family it is planted in, what plants it, and the check that must name it."""


class Opaque(Engine):
    """Another engine, of which only the interface is seen."""

    def __init__(self, inner: TorchEngine, why_no_score: str = "") -> None:
        self.inner, self.tokenizer, self.silent = inner, inner.tokenizer, why_no_score

    @property
    def context_tokens(self) -> int:
        return self.inner.context_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {"engine": "opaque"}

    @property
    def has_chat_template(self) -> bool:
        return self.inner.has_chat_template

    @property
    def why_no_score(self) -> str:
        return self.silent

    def fewer_slots(self, slots: int) -> contextlib.AbstractContextManager[None]:
        return self.inner.fewer_slots(slots)

    def score(self, requests: Sequence[ScoreRequest], *rest: Any) -> Iterator[list[ScoreResult]]:
        if self.silent:
            raise MissingError("no log-likelihoods", found=self.silent)
        return self.inner.score(requests, *rest)

    def generate(self, requests: Sequence[GenerateRequest], *rest: Any) -> Iterator[list[GenerateResult]]:
        return self.inner.generate(requests, *rest)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return self.inner.encode(text, add_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return self.inner.render_chat(messages, add_generation_prompt)


class Glass(Opaque):
    """Another engine that shows its model."""

    @property
    def shown(self) -> ShownModel:
        return self.inner.shown


def failed(found: Guarded) -> set[str]:
    return {check.name for check in found.failed}
