"""Checkpoints whose state cannot be shared, or not always: told apart when they are opened, and exact by the plain path."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, ScoreRequest
from perplexity_lies.engines.state import border_tokens
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError
from perplexity_lies.guard import guard

from .conftest import (
    COMMON,
    CONTEXT_TOKENS,
    GROUPED,
    LETTERS,
    VOCABULARY,
    few_shot_requests,
    generate_alone,
    save_tokenizer,
    score_alone,
)

TEXT = "".join(LETTERS)
BORDER = 64
ROPE = {"rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_type": "longrope"}
STATES = {
    "mamba": (lambda: transformers.MambaConfig(**COMMON, state_size=8), "other logits than in one pass"),
    "jamba": (
        lambda: transformers.JambaConfig(
            **GROUPED, attn_layer_period=2, attn_layer_offset=1, num_experts=2, num_experts_per_tok=1,
            use_mamba_kernels=False, mamba_d_state=8,
        ),
        "other logits than in one pass",
    ),
    "recurrent_gemma": (
        lambda: transformers.RecurrentGemmaConfig(**GROUPED, lru_width=32, attention_window_size=16), "carries no state",
    ),
    "rwkv": (
        lambda: transformers.RwkvConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, context_length=CONTEXT_TOKENS, bos_token_id=1,
            eos_token_id=2,
        ),
        "carries no state",
    ),
    "openai-gpt": (
        lambda: transformers.OpenAIGPTConfig(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT_TOKENS, initializer_range=0.2
        ),
        "carries no state",
    ),
    "longrope": (
        lambda: transformers.Phi3Config(
            **GROUPED, original_max_position_embeddings=BORDER,
            rope_parameters={**ROPE, "original_max_position_embeddings": BORDER},
        ),
        "",
    ),
    "dynamic": (
        lambda: transformers.LlamaConfig(
            **{**GROUPED, "max_position_embeddings": BORDER},
            rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0},
        ),
        "",
    ),
}  # fmt: skip
"""Family -> its config, and why its state is not shared (empty: it is, as far as it goes)."""


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TorchEngine]:
    """`opened("mamba")` -> an engine on a directory of random weights."""

    def open_one(family: str) -> TorchEngine:
        path = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(STATES[family][0]())
        model.save_pretrained(path)
        save_tokenizer(path)
        return TorchEngine(resolve(str(path)), EngineOptions(device="cpu", slots=4))

    return open_one


def replies(engine: TorchEngine, prompts: list[str], tokens: int) -> list[str]:
    asked = [
        GenerateRequest(prompt=prompt, add_special_tokens=False, max_new_tokens=tokens, seed=i)
        for i, prompt in enumerate(prompts)
    ]
    found = {result.key: result.text for batch in engine.generate(asked) for result in batch}
    return [found[request.key] for request in asked]


def alone(engine: TorchEngine, prompt: str, tokens: int) -> str:
    ids = tuple(engine.encode(prompt, False))
    text: str = engine.tokenizer.decode(
        generate_alone(engine.model, ids, tokens, sorted(engine.end_ids)), skip_special_tokens=True
    )
    return text


@pytest.mark.parametrize("family", STATES)
def test_the_plain_path_is_exact(family: str, opened: Callable[[str], TorchEngine]) -> None:
    engine = opened(family)
    assert STATES[family][1] in engine.why_not_shared and bool(engine.why_not_shared) == bool(STATES[family][1])
    requests = few_shot_requests(seed=3)[:40]
    found = {result.key: result for batch in engine.score(requests) for result in batch}
    for request in requests:
        if len(request.continuation_ids) > engine.context_tokens:
            assert found[request.key].error
            continue
        nats, greedy = score_alone(engine.model, request, engine.context_tokens)
        assert found[request.key].loglikelihood_nats == pytest.approx(nats, abs=1e-3)
        assert found[request.key].is_greedy == greedy
    prompts = [TEXT[:50], TEXT[5:35], TEXT[:58], TEXT[:50][::-1], TEXT[3:20]]
    assert replies(engine, prompts, 20) == [alone(engine, prompt, 20) for prompt in prompts]


def test_a_rotary_embedding_that_changes_is_shared_up_to_there(
    opened: Callable[[str], TorchEngine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened("longrope")
    assert border_tokens(engine.model.config) == ("longrope", BORDER)
    header = tuple(range(7, 7 + 40))
    short = [ScoreRequest(context_ids=header, continuation_ids=(i, i + 1)) for i in range(20, 40)]
    long = [ScoreRequest(context_ids=header + header, continuation_ids=(i, i + 1)) for i in range(20, 24)]
    for requests, warns in ((short, False), ([*short, *long], True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = {result.key: result.loglikelihood_nats for batch in engine.score(requests) for result in batch}
        assert ("beyond 64 tokens, and 81 are asked for" in caplog.text) == warns
        for request in requests:
            assert found[request.key] == pytest.approx(score_alone(engine.model, request, 256)[0], abs=1e-4)


@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma", "openai-gpt"])
def test_the_guard_says_what_it_cannot_check(family: str, opened: Callable[[str], TorchEngine]) -> None:
    found = guard(opened(family))
    assert found.failed == ()
    assert sum(check.passed is True for check in found.checks) >= 7


def test_a_model_that_cannot_be_run_is_told(opened: Callable[[str], TorchEngine], monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a layer that is not there")

    monkeypatch.setattr(transformers.OpenAIGPTLMHeadModel, "forward", broken)
    with pytest.raises(CheckpointError, match="cannot be run") as caught:
        opened("openai-gpt")
    assert "a layer that is not there" in str(caught.value)
