"""The artifact guard leaves sound engines alone and names the right check where a fault was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError
from perplexity_lies.guard import _subject, first_failed, guard, nats_by_key, weights_unchanged
from perplexity_lies.guard.checks import cached_against_full
from perplexity_lies.record.manifest import Rounding

from ..engines.conftest import FAMILIES
from ..engines.test_families import FAMILIES as OF_ALL_KINDS
from ..engines.test_families import save
from .faults import FAULTS, StaleCache, failed

WHOLE_PROBES = True

MOST_TOKENS = 36_000
"""Most tokens that the short form may run, where a token is a letter."""


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32_passes_every_check(opened: Callable[..., TorchEngine], family: str) -> None:
    found = guard(opened(family))
    assert [(check.name, check.detail) for check in found.checks if check.passed is not True] == []
    assert len(found.checks) == 17


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "hybrid-kda"])
def test_lower_precision_raises_no_alarm(opened: Callable[..., TorchEngine], family: str, dtype: str) -> None:
    found = guard(opened(family, dtype=dtype))
    assert [(check.name, check.detail) for check in found.failed] == []
    assert sum(check.passed is True for check in found.checks) >= 15


@pytest.mark.parametrize("family", ["nemotron_h", pytest.param("zamba2", marks=pytest.mark.slow)])
def test_a_cache_that_the_engine_does_not_use_is_no_alarm(tmp_path: Path, family: str) -> None:
    """Steps of these differ from full passes (transformers 5.23); the engine takes none, in slots or without, and is right."""
    save(family, tmp_path, OF_ALL_KINDS[family][1])
    engine = TorchEngine(resolve(str(tmp_path)), EngineOptions(device="cpu"))
    assert engine.why_not_cached and engine.why_not_slots
    found = cached_against_full(_subject(engine, full=False))
    assert found.passed and found.detail.startswith(
        "the engine runs no single token from the model's cache (a token run from its state"
    )
    if family == "zamba2":  # the others in benchmarks/guard_faults.py
        assert [(check.name, check.detail) for check in guard(engine).failed] == []


def test_positions_that_a_model_counts_by_itself_are_no_alarm(tmp_path: Path) -> None:
    save("roberta", tmp_path, OF_ALL_KINDS["roberta"][1])
    found = guard(TorchEngine(resolve(str(tmp_path)), EngineOptions(device="cpu")))
    assert [(check.name, check.detail) for check in found.checks if check.passed is not True] == []


def test_the_full_form_asks_more(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("llama")
    count = [0]
    engine.model.register_forward_pre_hook(
        lambda _, __, given: count.__setitem__(0, count[0] + given["input_ids"].numel()), with_kwargs=True
    )
    short = guard(engine)
    spent, count[0] = count[0], 0
    full = guard(engine, full=True)
    assert not short.failed and not full.failed
    assert spent <= MOST_TOKENS < count[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    opened: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    family, plant, check = FAULTS[fault]
    if isinstance(plant, type):
        engine = opened(family, kind=plant)
    else:
        engine = opened(family)
        plant(monkeypatch, engine)
    found = first_failed(engine, check)
    assert found is not None and found.name == check


def test_log_likelihoods_of_other_weights_are_caught(opened: Callable[..., TorchEngine]) -> None:
    """A cache that outlives its weights: the engine says of the new ones what it has kept of the old."""
    engine = opened("llama", kind=StaleCache)
    assert not guard(engine).failed
    engine.model.load_state_dict(opened("llama", seed=1).model.state_dict())
    assert "weights" in failed(guard(engine))


def test_weights_that_change_after_loading_are_caught(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("hybrid-kda")
    loaded = nats_by_key(guard(engine).fingerprint)
    assert weights_unchanged(engine, [loaded]).passed
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[5] += 0.5
    assert weights_unchanged(engine, [loaded]).passed is False


def test_the_manifest_gets_what_each_check_found(opened: Callable[..., TorchEngine]) -> None:
    found = guard(opened("llama"))
    told = found.describe()
    assert list(told) == [*(check.name for check in found.checks), "not looked at"]
    assert "wrong weights" in told["not looked at"].detail and told["not looked at"].passed is None
    for check in found.checks:
        facts = told[check.name]
        assert (facts.passed, facts.detail) == (check.passed, check.detail)
        assert check.measured is not None and facts.measured == round(check.measured, 6)
    assert found.rounding == Rounding()


def test_log_likelihoods_that_are_not_numbers_are_an_error(opened: Callable[..., TorchEngine]) -> None:
    engine = opened("llama")
    with torch.no_grad():
        engine.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="are not numbers"):
        guard(engine)
