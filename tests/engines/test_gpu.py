"""The same equivalences on a CUDA device: sharing, slots and a checkpoint of each precision. Run by `make gpu-check`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, nothing_finished
from perplexity_lies.engines.decoding import Row
from perplexity_lies.engines.generation import generate_in_slots
from perplexity_lies.engines.scoring import Budget, score_tree
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.guard import guard

from .conftest import CONTEXT_TOKENS, FAMILIES, few_shot_requests
from .test_generation import ENDS, Words, prompts_of, rows_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BUDGET = Budget(batch_tokens=8192, rows=32, state_bytes=2**30, forward_tokens=1024)
NATS = 1e-3
"""fp32 on a GPU adds in another order than on a CPU; TF32 is off by default."""


@pytest.fixture(params=sorted(FAMILIES))
def pair(request: pytest.FixtureRequest, random_model: Callable[[str], Any]) -> tuple[Any, Any]:
    """A family on the CPU, and its copy on the GPU."""
    model = random_model(request.param)
    return model, copy.deepcopy(model).to("cuda")


def scores(model: Any, *, share: bool) -> dict[str, float]:
    batches = score_tree(model, few_shot_requests(), CONTEXT_TOKENS, BUDGET, nothing_finished, share=share)
    return {result.key: result.loglikelihood_nats for batch in batches for result in batch}


def test_scores_are_those_of_the_cpu(pair: tuple[Any, Any]) -> None:
    cpu, gpu = pair
    expected = scores(cpu, share=False)
    for share in (True, False):
        found = scores(gpu, share=share)
        assert max(abs(found[key] - nats) / max(1.0, abs(nats)) for key, nats in expected.items()) < NATS


def test_slots_give_what_one_slot_gives(pair: tuple[Any, Any]) -> None:
    _, gpu = pair

    def ids(width: int) -> list[list[int]]:
        rows: list[Row] = rows_of(prompts_of(0))
        budget = Budget(batch_tokens=2048, rows=width, state_bytes=2**28)
        list(generate_in_slots(gpu, Words(), rows, frozenset(ENDS), CONTEXT_TOKENS, budget, nothing_finished))
        return [row.ids for row in rows]

    assert ids(16) == ids(1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["builtin:teacher", "builtin:student"])
def test_the_guard_passes(name: str, dtype: str, tmp_path: Path) -> None:
    engine = TorchEngine(resolve(name), EngineOptions(device="cuda", dtype=dtype))
    assert guard(engine, full=True).failed == ()
