"""Fixtures of the protocols' tests: small items suites, and a rung asked of an engine with nothing around it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.mirror import open_mirror
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite, rung_class
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import Engine, EngineOptions
from perplexity_lies.progress import Reporter
from perplexity_lies.protocols.base import Context
from perplexity_lies.protocols.hygiene import quarantine
from perplexity_lies.record.journal import Journal
from perplexity_lies.record.records import ItemRecord


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The checkpoints are tiny: a second thread only waits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def items(count: int = 8) -> list[dict[str, Any]]:
    """Items of different lengths, four subjects, letters beyond ASCII."""
    words = ["pear", "Straße", "日本", "a b c"]
    return [
        {
            "id": f"item-{i}",
            "subject": f"s{i % 4}",
            "question": f"{i} and {i + 1}, {words[i % 4]}" + ", more" * (i % 3) + "?",
            "choices": [f"{2 * i + 1}", f"{2 * i + 2} {words[i % 4]}", "none of them"],
            "gold": i % 3,
            "target": f"{2 * i + 1}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def items_suite(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Suite]:
    """`items_suite(count_or_items, max_new_tokens=..., ...)` -> a suite of one task of items."""

    def build(content: int | list[dict[str, Any]] = 8, **task: Any) -> Suite:
        folder = tmp_path_factory.mktemp("suite")
        asked = items(content) if isinstance(content, int) else content
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in asked)
        (folder / "items.jsonl").write_text(text, encoding="utf-8", newline="")
        settings = {"max_new_tokens": 12, "extract": r"(\d+)", "chat_template": False, **task}
        tasks = [{"name": "own", "items": "items.jsonl", **settings}]
        (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": tasks}))
        return load_suite(folder / "own.yaml")

    return build


@pytest.fixture(scope="session")
def opened() -> Callable[[Path], Engine]:
    """A checkpoint as a float32 CPU engine, opened once."""
    engines: dict[Path, Engine] = {}

    def open_once(path: Path) -> Engine:
        if path not in engines:
            options = EngineOptions(device="cpu", dtype="float32")
            engines[path] = open_engine("torch", resolve(str(path)), options)
        return engines[path]

    return open_once


Ask = Callable[..., list[ItemRecord]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """`ask("generation", engine, suite, limit=None, data=None)` -> records; one journal for the whole test."""

    def run(
        rung: str, engine: Engine, suite: Suite, *, limit: int | None = None, data: Path | None = None
    ) -> list[ItemRecord]:
        journal = Journal(tmp_path / f"{rung}.jsonl")
        log = tmp_path / f"{rung}.log"
        try:
            with quarantine(log):
                context = Context(open_mirror(data), limit, journal, log, Reporter(quiet=True))
                return rung_class(rung).ask(engine, suite, context)
        finally:
            journal.close()

    return run


@pytest.fixture(scope="session")
def hub() -> Path:
    """A mirror of real datasets; skips where the machine has none."""
    found = Path(__file__).parents[3] / "shared" / "data" / "hub"
    if not found.is_dir():
        pytest.skip("no ../shared/data/hub on this machine")
    return found


@pytest.fixture(scope="session")
def learned_positions(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[str], Path]:
    """`learned_positions("gpt2")` -> a checkpoint whose position table has 48 places."""
    import torch
    import transformers

    def build(model_type: str) -> Path:
        path = tmp_path_factory.mktemp("learned") / model_type
        shutil.copytree(tiny_llama, path)
        for file in [*path.glob("*.safetensors"), path / "generation_config.json"]:
            file.unlink(missing_ok=True)
        own: dict[str, dict[str, Any]] = {
            "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48},
            "gpt_neo": {
                "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 48,
                "attention_types": [[["global"], 2]],
            },
        }  # fmt: skip
        ends = {"eos_token_id": 0, "bos_token_id": 1}
        config = transformers.AutoConfig.for_model(model_type, vocab_size=261, **own[model_type], **ends)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
        return path

    return build
