"""The endpoint engine answers as the torch engine does: over our own test server, and over `transformers serve`."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, ScoreRequest
from perplexity_lies.engines.endpoint import EndpointEngine
from perplexity_lies.errors import MissingError

from .client import NATS, assert_same_scores, connect, replied, replies_of, scored, scores_of, with_bos
from .server import Service, serving


@pytest.mark.parametrize("takes_ids", [True, False])
def test_the_answers_are_the_torch_engines(torch_engine: Any, files: Path, takes_ids: bool) -> None:
    with serving(torch_engine, takes_ids=takes_ids) as service:
        engine = connect(service, files)
        assert engine.ability.prompts == ("ids" if takes_ids else "text") and not engine.why_no_score
        scores = scores_of(torch_engine)
        assert_same_scores(scored(engine, scores), scored(torch_engine, scores))
        for stop in ((), ("k", "zz")):
            replies = replies_of(torch_engine, stop=stop)
            assert replied(engine, replies) == replied(torch_engine, replies)


def test_a_stop_string_that_is_a_special_token(files: Path) -> None:
    """Servers match stop strings on text without special tokens unless they are told."""
    torch_engine = open_engine("torch", resolve(str(files)), EngineOptions(device="cpu", dtype="float32"))
    torch_engine.model.get_output_embeddings().weight.data[2] *= 3  # type: ignore[attr-defined]
    with serving(torch_engine) as service:
        engine = connect(service, files)
        for stop, told in ((("<|user|>",), True), (("k", "zz"), False)):
            service.asked.clear()
            replies = replies_of(torch_engine, stop=stop)
            found, wanted = replied(engine, replies), replied(torch_engine, replies)
            reason = {"finish_reason": "stop"}  # this server does not tell a stop string from an end token
            ended = [r if r.finish_reason == "length" else dataclasses.replace(r, **reason) for r in wanted]  # type: ignore[arg-type]
            assert found == ended
            assert any(result.finish_reason == "stop_string" for result in wanted) or not told
            assert all(body.get("skip_special_tokens", True) is not told for _, body, _ in service.asked)


def test_greedy_flags_of_both_kinds(torch_engine: Any, files: Path, service: Service) -> None:
    """The likeliest token after a context is greedy, and stays so as the first of two only if the second is too."""
    engine, context = connect(service, files), tuple(torch_engine.encode("Question 1: how many pears?"))
    best = max(
        range(260),
        key=lambda token: next(iter(scored(torch_engine, [one(context, token)]).values())).loglikelihood_nats,
    )
    asked = [one(context, best), one(context, (best + 1) % 260), one(context, best, best), one(context, best, 7)]
    found, wanted = scored(engine, asked), scored(torch_engine, asked)
    assert_same_scores(found, wanted)
    assert {result.is_greedy for result in wanted.values()} == {True, False}


def one(context: tuple[int, ...], *continuation: int) -> ScoreRequest:
    return ScoreRequest(context_ids=context, continuation_ids=continuation)


def test_a_server_that_puts_its_bos_before_a_text(files: Path, tmp_path: Path) -> None:
    directory = with_bos(files, tmp_path / "bos")
    torch_engine = open_engine("torch", resolve(str(directory)), EngineOptions(device="cpu", dtype="float32"))
    with serving(torch_engine, takes_ids=False, adds_bos=True) as service:
        engine = connect(service, directory)
        assert engine.ability.added_ids == (1,)
        scores = scores_of(torch_engine)
        assert scores[0].context_ids[0] == 1
        assert_same_scores(scored(engine, scores), scored(torch_engine, scores))
        plain = GenerateRequest(prompt="A pear", add_special_tokens=True, max_new_tokens=6)
        assert replied(engine, [plain]) == replied(torch_engine, [plain])
        bare = dataclasses.replace(plain, add_special_tokens=False)  # cannot be said to this server: told, not bent
        (result,) = replied(engine, [bare])
        assert result.failed and "the server read 7 tokens of a prompt of 6" in result.error


def test_a_prompt_that_the_server_cuts_is_refused_and_not_asked_again(torch_engine: Any, files: Path) -> None:
    with serving(torch_engine, echoes=False, reads_tokens=48) as service:
        engine = connect(service, files)
        texts = ("A pear", "The pear is on the table and the apple is under it; what is on the table?")
        asked = [GenerateRequest(prompt=text, add_special_tokens=False, max_new_tokens=4) for text in texts]
        tokens = len(engine.encode(texts[1], False))
        assert tokens > 48
        before = len(service.asked)
        whole, cut = replied(engine, asked)
        assert len(service.asked) == before + 2
    assert whole.error == "" and whole.truncated_tokens == 0
    assert not cut.failed and cut.truncated_tokens == tokens - 48
    assert cut.error == f"the server cut the prompt: it read 48 of its {tokens} tokens"


def test_chats_where_the_tokenizer_is_not_known(torch_engine: Any, service: Service) -> None:
    engine = connect(service, None)
    assert engine.takes_messages and "--tokenizer" in engine.why_no_score
    replies = replies_of(engine)
    wanted = replied(torch_engine, replies_of(torch_engine))
    found = replied(engine, replies)
    assert [(r.text, r.finish_reason, r.completion_tokens, r.prompt_tokens) for r in found] == [
        (r.text, r.finish_reason, r.completion_tokens, r.prompt_tokens) for r in wanted
    ]
    assert all(path == "/v1/chat/completions" for path, _, _ in service.asked)
    with pytest.raises(MissingError, match="no log-likelihoods to give"):
        engine.score(scores_of(torch_engine))


def test_a_context_that_the_server_states(torch_engine: Any, files: Path) -> None:
    with serving(torch_engine, context_tokens=40) as service:
        engine = connect(service, files)
        assert engine.context_tokens == 40
        long = ScoreRequest(context_ids=tuple(range(10, 70)), continuation_ids=(7, 8))
        ((result,),) = list(engine.score([long]))
        assert (result.truncated_tokens, result.context_tokens, result.continuation_tokens) == (23, 37, 2)
        cut = ScoreRequest(context_ids=long.context_ids[23:], continuation_ids=(7, 8))
        ((wanted,),) = list(torch_engine.score([cut]))
        assert abs(result.loglikelihood_nats - wanted.loglikelihood_nats) < NATS
        (reply,) = replied(engine, [GenerateRequest(prompt="x" * 30, add_special_tokens=False, max_new_tokens=99)])
        assert reply.finish_reason == "length" and reply.completion_tokens == 10


def test_what_is_finished_is_not_asked(torch_engine: Any, files: Path, service: Service) -> None:
    engine, requests = connect(service, files), replies_of(torch_engine)
    service.asked.clear()
    left = [result.key for batch in engine.generate(requests, lambda key: key != requests[2].key) for result in batch]
    assert left == [requests[2].key] and len(service.asked) == 1


def test_transformers_serve(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`transformers serve`: text prompts only, no log-probabilities; greedy replies are the torch engine's."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
    pytest.importorskip("uvicorn", reason="transformers serve needs fastapi and uvicorn")
    import huggingface_hub.constants
    from transformers.cli.serve import Serve
    from transformers.utils import logging

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    # Llama: of a Qwen3, the server would look for Qwen3's own markers in the reply to a chat.
    files = tiny_checkpoint("llama", seed=3, chat_template=True)
    torch_engine = open_engine("torch", resolve(str(files)), EngineOptions(device="cpu", dtype="float32"))
    verbosity = logging.get_verbosity()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = Serve(
        str(files), device="cpu", dtype="float32", host="127.0.0.1", port=port, log_level="error", non_blocking=True,
        model_timeout=300, reasoning="auto", continuous_batching=False, attn_implementation=None, compile=False,
        quantization=None, chat_template_kwargs=None, decision_config=None, trust_remote_code=False, cb_block_size=None,
        cb_num_blocks=None, cb_max_batch_tokens=None, cb_max_memory_percent=None, cb_use_cuda_graph=None,
        enable_cors=False, default_seed=None,
    )  # fmt: skip
    try:
        checkpoint = resolve(f"http://127.0.0.1:{port}/v1#{files}")
        assert checkpoint.path == files, "the server names its model by a directory of this machine"
        engine = EndpointEngine(checkpoint, EngineOptions(slots=4))
        assert engine.ability.prompts == "text" and "no log-probabilities" in engine.why_no_score
        for stop in ((), ("4", "v")):  # letters that no special token holds: HF looks for stop strings in those too
            replies = replies_of(torch_engine, 8, stop=stop)
            wanted = replied(torch_engine, replies)
            assert replied(engine, replies) == wanted
            assert any(result.finish_reason == "stop_string" for result in wanted) == bool(stop)
        chats = EndpointEngine(dataclasses.replace(checkpoint, path=None), EngineOptions(slots=4))
        assert chats.takes_messages
        found, wanted = replied(chats, replies_of(chats, 4)), replied(torch_engine, replies_of(torch_engine, 4))
        assert [(r.text, r.finish_reason, r.prompt_tokens) for r in found] == [
            (r.text, r.finish_reason, r.prompt_tokens) for r in wanted
        ]
    finally:
        running.kill_server()
        logging.set_verbosity(verbosity)
