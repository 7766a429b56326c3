"""Faults planted in generation, stop strings, sampling, scoring, templates and tokenizers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from perplexity_lies.engines import decoding, generation, scoring
from perplexity_lies.engines.base import GenerateRequest, GenerateResult, Message, ScoreRequest, ScoreResult
from perplexity_lies.engines.torch import TorchEngine

from .faults import Break, around

# ── generation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def results(change: Callable[[GenerateResult, Any], GenerateResult]) -> Break:
    """Change every reply."""

    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        generate = engine.generate

        def changed(requests: Sequence[GenerateRequest], *rest: Any) -> Iterator[list[GenerateResult]]:
            for batch in generate(requests, *rest):
                yield [change(result, engine) for result in batch]

        engine.generate = changed  # type: ignore[method-assign]

    return plant


def asked(change: Callable[[GenerateRequest], dict[str, Any]]) -> Break:
    """Change every request before the engine reads it; results keep the key that was asked for."""

    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        generate = engine.generate

        def changed(requests: Sequence[GenerateRequest], *rest: Any) -> Iterator[list[GenerateResult]]:
            told = {r.key: dataclasses.replace(r, **change(r)) for r in requests}
            keys: dict[str, list[str]] = {}
            for key, request in told.items():
                keys.setdefault(request.key, []).append(key)
            for batch in generate(list(told.values()), *rest):
                yield [dataclasses.replace(found, key=key) for found in batch for key in keys[found.key]]

        engine.generate = changed  # type: ignore[method-assign]

    return plant


def chosen_by(change: Callable[[torch.Tensor, Sequence[Any]], torch.Tensor]) -> Break:
    """Change the logits that tokens are chosen from."""

    def plant(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
        choose = generation.choose
        patch.setattr(generation, "choose", lambda logits, rows: choose(change(logits, rows), rows))

    return plant


def repetition_penalty(logits: torch.Tensor, rows: Sequence[Any]) -> torch.Tensor:
    penalised = logits.clone()
    for at, row in enumerate(rows):
        for token in {*row.ids}:
            penalised[at, token] = penalised[at, token] * (0.7 if penalised[at, token] > 0 else 1.4)
    return penalised


def first_end_only(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    """The checkpoint states three end tokens, of which the engine knows one."""
    engine.model.generation_config.eos_token_id = [2, 7, 9]
    engine.end_ids = frozenset([2])


def end_kept_in_text(result: GenerateResult, engine: Any) -> GenerateResult:
    return dataclasses.replace(result, text=result.text + "<eos>") if result.finish_reason == "stop" else result


def no_end_at_first(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """A least length of two tokens."""
    advance = generation.advance
    patch.setattr(
        generation,
        "advance",
        lambda row, token, kind, ends, most: advance(row, token, kind, ends if row.ids else frozenset(), most),
    )


# ── stop strings ───────────────────────────────────────────────────────────────────────────────────────────────────


def stop_within_one_token(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    holds_stop = decoding.holds_stop
    patch.setattr(decoding, "holds_stop", lambda tokenizer, ids, stop: holds_stop(tokenizer, list(ids)[-1:], stop))


def stop_kept(result: GenerateResult, engine: Any) -> GenerateResult:
    return dataclasses.replace(result, text=decoding.decode_text(engine.tokenizer, result.token_ids))


def stop_cuts_a_letter_more(result: GenerateResult, engine: Any) -> GenerateResult:
    return dataclasses.replace(result, text=result.text[:-1]) if result.finish_reason == "stop_string" else result


def stops_without_special_tokens(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    patch.setattr(decoding, "decode_all", decoding.decode_text)


def special_stop_kept(result: GenerateResult, engine: Any) -> GenerateResult:
    """The text is cut at its last special token only: what a stop string has before that stays."""
    special = set(engine.tokenizer.all_special_ids)
    if result.finish_reason == "stop_string" and result.token_ids[-1] in special:
        return dataclasses.replace(result, text=decoding.decode_text(engine.tokenizer, result.token_ids))
    return result


# ── sampling ───────────────────────────────────────────────────────────────────────────────────────────────────────


def sampled(**changed: Any) -> Break:
    """Every sampled request has these settings instead."""
    return asked(
        lambda request: (
            {"sampling": dataclasses.replace(request.sampling, **changed)} if request.sampling.temperature else {}
        )
    )


def scaled(by: float) -> Break:
    return asked(
        lambda r: (
            {"sampling": dataclasses.replace(r.sampling, temperature=r.sampling.temperature * by)}
            if r.sampling.temperature
            else {}
        )
    )


def one_wider(request: GenerateRequest) -> dict[str, Any]:
    kept = request.sampling
    return {"sampling": dataclasses.replace(kept, top_k=kept.top_k + 1)} if kept.top_k else {}


def one_generator_for_all(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    shared = torch.Generator().manual_seed(0)
    waiting = generation._waiting

    def sharing(rows: Any, finished: Any) -> Any:
        found = waiting(rows, finished)
        for row in found:
            row.generator = shared
        return found

    patch.setattr(generation, "_waiting", sharing)


def seeds_by_place(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    """A row's seed is its place in the batch."""
    waiting = generation._waiting

    def placed(rows: Any, finished: Any) -> Any:
        found = waiting(rows, finished)
        for at, row in enumerate(found):
            row.generator = torch.Generator().manual_seed(at)
        return found

    patch.setattr(generation, "_waiting", placed)


def nucleus_before_temperature(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    def drawn(logits: torch.Tensor, sampling: Any, generator: Any) -> int:
        scores = logits.float()
        ordered, order = scores.sort(descending=True)
        drop = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= sampling.top_p
        scores = scores.masked_fill(torch.zeros_like(drop).scatter(0, order, drop), -torch.inf)
        if sampling.top_k:
            scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
        return int(torch.multinomial((scores / sampling.temperature).softmax(-1), 1, generator=generator))

    patch.setattr(decoding, "next_token", drawn)


# ── scoring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def scores(change: Callable[[ScoreResult, ScoreRequest], ScoreResult]) -> Break:
    """Change every log-likelihood."""

    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        score = engine.score

        def changed(requests: Sequence[ScoreRequest], *rest: Any) -> Iterator[list[ScoreResult]]:
            of = {request.key: request for request in requests}
            for batch in score(requests, *rest):
                yield [change(result, of[result.key]) for result in batch]

        engine.score = changed  # type: ignore[method-assign]

    return plant


def cut_on_the_right(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    score, most = engine.score, engine.context_tokens

    def cut(requests: Sequence[ScoreRequest], *rest: Any) -> Iterator[list[ScoreResult]]:
        told = {
            r.key: ScoreRequest(
                context_ids=r.context_ids[: most + 1 - len(r.continuation_ids)], continuation_ids=r.continuation_ids
            )
            for r in requests
        }
        keys = {request.key: key for key, request in told.items()}
        for batch in score(list(told.values()), *rest):
            yield [dataclasses.replace(found, key=keys[found.key]) for found in batch]

    engine.score = cut  # type: ignore[method-assign]


def coarse_logits(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    read = scoring._read
    patch.setattr(scoring, "_read", lambda chunks, reads: read([(4 * chunk).round() / 4 for chunk in chunks], reads))


def forked_positions(by: int) -> Break:
    """A stretch that goes on from a state begins `by` positions too far."""

    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        def move(given: dict[str, Any]) -> None:
            state, (rows, width) = given.get("past_key_values"), given["input_ids"].shape
            if state is not None and width > 1 and state.get_seq_length():
                begin = state.get_seq_length() + by
                given["position_ids"] = torch.arange(begin, begin + width).expand(rows, width)

        around(engine.model, move)

    return plant


def answers_of_a_batch_swapped(patch: pytest.MonkeyPatch, _: TorchEngine) -> None:
    read = scoring._read

    def swapped(chunks: Any, reads: Any) -> Any:
        found = read(chunks, reads)
        keys = [result.key for result in found]
        return [dataclasses.replace(result, key=key) for result, key in zip(found, keys[::-1], strict=True)]

    patch.setattr(scoring, "_read", swapped)


# ── templates and tokenizers ───────────────────────────────────────────────────────────────────────────────────────


def template(change: Callable[[str], str]) -> Break:
    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        engine.tokenizer.chat_template = change(engine.tokenizer.chat_template)

    return plant


def encoding(change: Callable[[list[int], bool | None, Any], list[int]]) -> Break:
    """Change what the tokenizer makes of a text."""

    def plant(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
        encode = engine.encode

        def changed(text: str, add_special_tokens: bool | None = None) -> list[int]:
            return change(encode(text, add_special_tokens), add_special_tokens, engine)

        engine.encode = changed  # type: ignore[method-assign]

    return plant


def counting_template(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    render, count = engine.render_chat, itertools.count()

    def counted(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return f"{next(count)} {render(messages, add_generation_prompt)}"

    engine.render_chat = counted  # type: ignore[method-assign]


def with_ids(result: GenerateResult, engine: Any) -> GenerateResult:
    """The text with its special tokens."""
    return dataclasses.replace(result, text=engine.tokenizer.decode(list(result.token_ids), skip_special_tokens=False))


def mean_of(result: ScoreResult, request: ScoreRequest) -> ScoreResult:
    """The mean over the tokens of a continuation."""
    return dataclasses.replace(result, loglikelihood_nats=result.loglikelihood_nats / len(request.continuation_ids))


def bos_without_template(patch: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    """The tokenizer puts BOS before a text; the chat template has none."""
    template(lambda text: text.replace("{{ bos_token }}", ""))(patch, engine)
    encoding(lambda ids, add, _: ids if add is False or ids[:1] == [1] else [1, *ids])(patch, engine)


# ── what every path shares ─────────────────────────────────────────────────────────────────────────────────────────


def other_weights(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[7] += 0.5


def other_frequencies(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    engine.model.model.rotary_emb.inv_freq *= 0.5


def lowered(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    encode = engine.encode
    engine.encode = lambda text, add_special_tokens=None: encode(text.lower(), add_special_tokens)  # type: ignore[method-assign]


def far_positions(_: pytest.MonkeyPatch, engine: TorchEngine) -> None:
    def move(given: dict[str, Any]) -> None:
        positions = given.get("position_ids")
        if positions is not None:
            given["position_ids"] = positions + (positions > 600)

    around(engine.model, move)
