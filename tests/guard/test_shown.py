"""Engines that do not show their model are checked by what they answer; those that do, by their model too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.guard import _subject, first_failed, guard
from perplexity_lies.guard.ends import end_token
from perplexity_lies.guard.subject import Check

from .faults import (
    Glass,
    MixingCache,
    Opaque,
    TemplateTwice,
    convolution_not_forked,
    logits_shifted_in_the_model,
    logits_shifted_in_the_scorer,
    mask_dropped_in_generation,
    state_leaks_between_rows,
)


def test_a_new_engine_that_shows_its_model_is_guarded_as_torch_is(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("hybrid-kda")
    glass, torch_ = guard(Glass(engine)), guard(engine)
    assert [check.passed for check in glass.checks] == [True] * 17
    assert measures(glass.checks) == measures(torch_.checks) and glass.rounding == torch_.rounding


def measures(checks: tuple[Check, ...]) -> dict[str, tuple[float | None, float | None]]:
    return {check.name: (check.measured, check.tolerance) for check in checks}


def test_a_fault_that_only_the_model_shows_is_caught_in_a_new_engine(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened("llama")
    logits_shifted_in_the_model(monkeypatch, engine)
    assert first_failed(Glass(engine), "cached against full") is not None
    assert first_failed(Opaque(engine), "cached against full") is None


def test_an_engine_without_its_model_is_asked_what_it_can_be_asked(opened: Callable[..., TorchEngine]) -> None:
    found = {check.name: check for check in guard(Opaque(opened("hybrid-kda"))).checks}
    assert [check.detail for check in found.values() if check.passed is False] == []
    unchecked = {name for name, check in found.items() if check.passed is None}
    inside = {"scored position", "cached against full", "long replies", "truncation", "sampling"}
    assert inside <= unchecked <= {*inside, "end token"}
    assert "does not show its model" in found["scored position"].detail


def test_an_engine_without_log_likelihoods_is_asked_for_replies(opened: Callable[..., TorchEngine]) -> None:
    found = {check.name: check for check in guard(Opaque(opened("llama"), "the server has none")).checks}
    assert [check.detail for check in found.values() if check.passed is False] == []
    assert found["batch size"].passed and found["prompt isolation"].passed and found["chat template"].passed
    assert "no log-likelihoods" in found["negative control"].detail


@pytest.mark.parametrize(
    ("family", "plant", "check"),
    [
        ("hybrid-kda", state_leaks_between_rows, "batch size"),
        ("hybrid-kda", convolution_not_forked, "shared prefixes"),
        ("llama", mask_dropped_in_generation, "padding"),
        ("llama", logits_shifted_in_the_scorer, "negative control"),
        ("llama", TemplateTwice, "chat template"),
        ("llama", MixingCache, "restart"),
    ],
)
def test_faults_show_without_the_model(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch, family: str, plant: Any, check: str
) -> None:
    engine = opened(family, kind=plant) if isinstance(plant, type) else opened(family)
    if not isinstance(plant, type):
        plant(monkeypatch, engine)
    found = first_failed(Opaque(engine), check)
    assert found is not None and found.name == check


def test_an_end_token_is_looked_for_where_a_reply_comes_to_one(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("gpt2", seed=1)
    subject = _subject(Opaque(engine), full=False)
    assert end_token(subject).passed, "this seed must have replies that end"
    engine.end_ids = frozenset()
    assert first_failed(Opaque(engine), "end token") is not None
