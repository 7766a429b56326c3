"""The artifact guard leaves sound engines alone and names the right check where a fault was planted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError
from perplexity_lies.guard import first_failed, guard, nats_by_key, weights_unchanged
from perplexity_lies.record.manifest import Rounding

from ..engines.conftest import FAMILIES
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
