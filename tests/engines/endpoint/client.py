"""Requests to a served checkpoint, and results in the form in which the tests compare them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from perplexity_lies.checkpoint.client import Patience
from perplexity_lies.checkpoint.lookup import Checkpoint, resolve
from perplexity_lies.engines.base import (
    Engine,
    EngineOptions,
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
)
from perplexity_lies.engines.endpoint import EndpointEngine

from .server import MODEL, Service

NATS = 1e-4
UNSEEN: dict[str, Any] = {"smallest_margin": None, "token_ids": ()}
"""Fields of a result that a server does not fill."""

QUICK = Patience(attempts=4, first_wait_s=0.01, timeout_s=20.0)


def named(service: Service, files: Path | None) -> Checkpoint:
    return resolve(f"{service.url}#{MODEL}", tokenizer=str(files) if files else None)


def connect(service: Service, files: Path | None, patience: Patience = QUICK) -> EndpointEngine:
    return EndpointEngine(named(service, files), EngineOptions(slots=4), patience)


def scores_of(engine: Engine, count: int = 6) -> list[ScoreRequest]:
    """Choices of one to many tokens after questions, some beginning alike, letters beyond ASCII."""
    found = []
    for i in range(count):
        context = tuple(engine.encode(f"Question {i}: how many pears?"))
        found += [
            ScoreRequest(context_ids=context, continuation_ids=tuple(engine.encode(choice, False)))
            for choice in (" 1", f" {i} Straßen", " none of them, I should say")
        ]
    return found


def replies_of(engine: Engine, count: int = 6, **settings: Any) -> list[GenerateRequest]:
    chats = [[{"role": "user", "content": f"Chat {i}, pear?"}] for i in range(count)]
    return [
        GenerateRequest(
            prompt=engine.render_chat(chat), add_special_tokens=False, max_new_tokens=5 + i,
            messages=tuple((m["role"], m["content"]) for m in chat) if engine.takes_messages else (), **settings,
        )
        for i, chat in enumerate(chats)
    ]  # fmt: skip


def scored(engine: Engine, requests: list[ScoreRequest]) -> dict[str, ScoreResult]:
    return {result.key: result for batch in engine.score(requests) for result in batch}


def replied(engine: Engine, requests: list[GenerateRequest]) -> list[GenerateResult]:
    """Results in the order of the requests, without the fields that a server does not fill."""
    found = {result.key: result for batch in engine.generate(requests) for result in batch}
    return [dataclasses.replace(found[request.key], **UNSEEN) for request in requests]


def assert_same_scores(found: dict[str, ScoreResult], wanted: dict[str, ScoreResult]) -> None:
    assert found.keys() == wanted.keys()
    for key, result in found.items():
        assert abs(result.loglikelihood_nats - wanted[key].loglikelihood_nats) < NATS
        for name in ("is_greedy", "context_tokens", "continuation_tokens", "truncated_tokens", "error", "failed"):
            assert getattr(result, name) == getattr(wanted[key], name)


def with_bos(files: Path, directory: Path) -> Path:
    """The checkpoint with a tokenizer that puts BOS before every text."""
    shutil.copytree(files, directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    begin = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [1], "tokens": ["<|begin|>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory
