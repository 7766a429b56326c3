"""The probes take the paths of a run, sampling is checked at a stated level, and faults that show only there are caught."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from perplexity_lies.engines import generation
from perplexity_lies.engines.base import Sampling
from perplexity_lies.engines.slots import Slots
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.guard import _subject, first_failed
from perplexity_lies.guard.as_a_run import as_a_run
from perplexity_lies.guard.question import another_day, one_question
from perplexity_lies.guard.sampling import MOST_ERRORS, SETTINGS, errors_of, kept_probabilities, place_of
from perplexity_lies.guard.stops import stop_strings

from ..engines.conftest import SPECIAL
from .planted import PLANTED

WHOLE_PROBES = True

QUICK = {
    "positions one too far in slots": ("bfloat16", "as a run"),
    "late rows enter one token short": ("float32", "as a run"),
    "shrinking mixes up lengths": ("bfloat16", "as a run"),
    "growing drops the last key": ("float32", "as a run"),
    "stop strings within one token only": ("float32", "stop strings"),
    "stop strings searched without special tokens": ("bfloat16", "stop strings"),
    "the text cut after a special stop string": ("float32", "stop strings"),
    "top_k one too wide": ("float32", "sampling"),
    "seeds by place in the batch": ("float32", "sampling"),
    "cut on the right": ("float32", "truncation"),
    "always greedy": ("float32", "scored position"),
    "positions one too far after a fork, GPT-NeoX": ("bfloat16", "shared prefixes"),
    "one of several end tokens known": ("float32", "end token"),
    "end token stands in the text": ("float32", "end token"),
    "the template writes the date": ("float32", "one question"),
    "two renderings differ": ("float32", "one question"),
    "the assistant's turn is not opened": ("float32", "one question"),
    "the assistant's turn is opened twice": ("float32", "one question"),
    "BOS by the tokenizer, none in the template": ("float32", "one question"),
    "an end token after every text": ("float32", "one question"),
}
"""Fault -> the dtype it is planted in and the check that must name it. `benchmarks/guard_faults.py` plants all in two dtypes."""


@pytest.mark.parametrize("fault", QUICK)
def test_a_fault_of_a_run_is_caught(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (family, plant), (dtype, check) = PLANTED[fault], QUICK[fault]
    assert not isinstance(plant, type)
    engine = opened(family, dtype=dtype)
    plant(monkeypatch, engine)
    found = first_failed(engine, check)
    assert found is not None and found.name == check


def test_rows_enter_late_buffers_grow_and_the_batch_shrinks(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no probe did before: every path of the slots is taken, and the engine decodes as many rows as before afterwards."""
    met, steps = Counter[str](), [0]

    def count(name: str, happens: Callable[[Any], bool]) -> None:
        original = getattr(Slots, name)

        def counted(self: Slots, *args: Any, **given: Any) -> Any:
            met[name] += happens(self)
            return original(self, *args, **given)

        monkeypatch.setattr(Slots, name, counted)

    count("step", lambda self: bool(steps.__setitem__(0, steps[0] + 1)) or True)
    count("enter", lambda self: steps[0] > 0)
    count("_move", lambda self: steps[0] > 0)
    count("shrink", lambda self: True)
    engine = opened("llama")
    found = as_a_run(_subject(engine, full=False))
    assert found.passed, found.detail
    assert met["enter"] >= 6 and met["_move"] >= 1 and met["shrink"] >= 1 and met["step"] > 256
    assert engine.options.slots == 64


def test_stop_strings_span_tokens_and_are_met(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    waiting = generation._waiting
    monkeypatch.setattr(generation, "_waiting", lambda rows, done: asked.extend(rows) or waiting(rows, done))
    found = stop_strings(_subject(opened("qwen3"), full=False))
    stops = [row for row in asked if row.request.stop]
    assert found.passed and len(stops) >= 4
    assert any(len(row.request.stop) > 1 for row in stops)
    special = [row for row in stops if any(name in stop for name in SPECIAL for stop in row.request.stop)]
    assert len(special) == 2 and all(row.finish_reason == "stop_string" for row in special)
    assert all(len(stop) >= 2 for row in stops for stop in row.request.stop if stop != "\u2603"), (
        "a token is a letter here"
    )
    assert sum(row.finish_reason == "stop_string" for row in stops) >= len(stops) - 1


@pytest.mark.parametrize("sampling", SETTINGS)
def test_kept_probabilities_are_those_of_hf_warpers(sampling: Sampling) -> None:
    torch.manual_seed(0)
    for logits in torch.randn(20, 50) * 3:
        scores = TemperatureLogitsWarper(sampling.temperature)(None, logits[None].double())
        if sampling.top_k:
            scores = TopKLogitsWarper(sampling.top_k)(None, scores)
        if sampling.top_p < 1:
            scores = TopPLogitsWarper(sampling.top_p)(None, scores)
        torch.testing.assert_close(kept_probabilities(logits, sampling), scores[0].softmax(-1))


def test_places_of_true_draws_are_uniform_and_those_of_a_wrong_temperature_are_not() -> None:
    """100 sound samples of 128 draws: none reaches the bar of 5 errors, and 2 errors are as rare as they should be."""
    torch.manual_seed(0)
    rng, errors = random.Random(0), []
    logits = torch.randn(128, 40) * 2
    draws = {
        heat: torch.stack([torch.multinomial((row / heat).softmax(-1), 100, replacement=True) for row in logits], 1)
        for heat in (1.0, 2.0)
    }
    for sample in draws[1.0]:
        places = [
            place_of(int(token), row, rng.random()) for token, row in zip(sample, logits.softmax(-1), strict=True)
        ]
        errors.append(errors_of([place for place in places if place is not None]))
    assert max(errors) < MOST_ERRORS and 0.03 < sum(error > 2 for error in errors) / len(errors) < 0.16
    hot = [place_of(int(t), row, rng.random()) for t, row in zip(draws[2.0][0], logits.softmax(-1), strict=True)]
    assert errors_of([place for place in hot if place is not None]) > MOST_ERRORS


def test_a_template_whose_clock_stands_is_stable(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("llama")
    engine.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + engine.tokenizer.chat_template
    found = one_question(_subject(engine, full=False))
    assert found.passed is False and "another day" in found.detail
    render = engine.render_chat

    def standing(messages: Any, add_generation_prompt: bool = True) -> str:
        with another_day():
            return render(messages, add_generation_prompt)

    engine.render_chat = standing  # type: ignore[method-assign]
    assert one_question(_subject(engine, full=False)).passed
