"""Checkpoints with random weights and a token for each letter, and engines on them that a test may break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.engines.device import cpu_threads
from perplexity_lies.engines.loading import kernels_for
from perplexity_lies.engines.torch import TorchEngine

from ..engines.conftest import FAMILIES, save_tokenizer


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`family_checkpoint("mamba2", seed=1)` -> a directory with random weights, built once: do not write in it."""
    root = tmp_path_factory.mktemp("guarded")
    built: dict[tuple[str, int], Path] = {}

    def build(family: str, seed: int = 0) -> Path:
        if (family, seed) not in built:
            path = built[family, seed] = root / f"{family}-{seed}"
            with torch.random.fork_rng(devices=[]), kernels_for(torch.device("cpu")):
                torch.manual_seed(seed)
                model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
                for name, weight in model.named_parameters():
                    if name.endswith("conv_weight"):  # KDA's convolution begins as the identity: no state of it matters
                        torch.nn.init.normal_(weight)
            model.save_pretrained(path)
            save_tokenizer(path)
        return built[family, seed]

    return build


@pytest.fixture
def opened(family_checkpoint: Callable[..., Path]) -> Callable[..., TorchEngine]:
    """`opened("llama", dtype="bfloat16")` -> an engine of one's own, to break."""

    def open_one(family: str, *, seed: int = 0, dtype: str = "float32", kind: type[TorchEngine] = TorchEngine) -> Any:
        return kind(resolve(str(family_checkpoint(family, seed))), EngineOptions(device="cpu", dtype=dtype))

    return open_one


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture(autouse=True)
def probes_of_a_run(
    request: pytest.FixtureRequest, whole_probes: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a module that says `WHOLE_PROBES = True`, the guard's probes are as long as in a run."""
    if getattr(request.module, "WHOLE_PROBES", False):
        for module, constants in whole_probes.items():
            for name, value in constants.items():
                monkeypatch.setattr(f"perplexity_lies.guard.{module}.{name}", value)
