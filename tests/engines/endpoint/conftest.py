"""A tiny checkpoint, the torch engine over it, and a server over that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import EngineOptions

from .server import Service, serving


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("qwen3", seed=3, chat_template=True)


@pytest.fixture(scope="module")
def torch_engine(files: Path) -> Any:
    return open_engine("torch", resolve(str(files)), EngineOptions(device="cpu", dtype="float32"))


@pytest.fixture
def service(torch_engine: Any) -> Iterator[Service]:
    with serving(torch_engine) as running:
        yield running
