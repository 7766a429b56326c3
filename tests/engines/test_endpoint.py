"""The endpoint engine against real servers on this machine: the torch engine's answers, whatever goes wrong on the way."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies import server as servers
from perplexity_lies.checkpoint import LOOK_UP, Checkpoint, resolve
from perplexity_lies.cli import main
from perplexity_lies.engines import endpoint, engine_of, open_engine
from perplexity_lies.engines.base import (
    Engine,
    EngineOptions,
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
)
from perplexity_lies.engines.endpoint import EndpointEngine
from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.evaluate import evaluate
from perplexity_lies.records import GENERATION, LOGLIKELIHOOD, ItemRecord, Status
from perplexity_lies.server import Patience, parse_address, retry_after_s
from perplexity_lies.store import Journal

from .endpoint_server import FOR_EVER, MODEL, Fault, Service, serving

NATS = 1e-4
UNSEEN: dict[str, Any] = {"smallest_margin": None}
"""What a server does not tell of a reply."""

QUICK = Patience(attempts=4, first_wait_s=0.01, timeout_s=20.0)
SHORT_S = 2.0
"""Patience for one reply where time-outs are tested."""
TRANSIENT = (
    "time-out",
    "429",
    "500",
    "503",
    "dropped",
    "not JSON",
    "cut JSON",
    "cut connection",
    "other JSON",
    "no number",
    "nothing likeliest",
)


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
    """In the order of the requests, but for what only an engine that sees all logits can tell."""
    found = {result.key: result for batch in engine.generate(requests) for result in batch}
    return [dataclasses.replace(found[request.key], **UNSEEN) for request in requests]


def assert_same_scores(found: dict[str, ScoreResult], wanted: dict[str, ScoreResult]) -> None:
    assert found.keys() == wanted.keys()
    for key, result in found.items():
        assert abs(result.loglikelihood_nats - wanted[key].loglikelihood_nats) < NATS
        for name in ("is_greedy", "context_tokens", "continuation_tokens", "truncated_tokens", "error", "failed"):
            assert getattr(result, name) == getattr(wanted[key], name)


# --- the same answers as the torch engine -----------------------------------------------------------------------------


@pytest.mark.parametrize("takes_ids", [True, False])
def test_the_answers_are_the_torch_engines(torch_engine: Any, files: Path, takes_ids: bool) -> None:
    with serving(torch_engine, takes_ids=takes_ids) as service:
        engine = connect(service, files)
        assert engine.ability.prompts == ("ids" if takes_ids else "text") and not engine.why_no_score
        scores = scores_of(torch_engine)
        assert_same_scores(scored(engine, scores), scored(torch_engine, scores))
        for stop in ((), ("e", "zz")):
            replies = replies_of(torch_engine, stop=stop)
            assert replied(engine, replies) == replied(torch_engine, replies)


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


def test_messages_change_no_key_of_a_request_without_them() -> None:
    plain = GenerateRequest(prompt="a", add_special_tokens=True, max_new_tokens=3)
    assert plain.key == "0eaaff42b02ffae9125aa7b3bd125ccdf0c750822b15a758a9a3e4d5204ad135", (
        "journals of earlier runs hold it"
    )
    assert dataclasses.replace(plain, messages=(("user", "a"),)).key != plain.key


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


# --- faults -----------------------------------------------------------------------------------------------------------


def patience_for(kind: str) -> Patience:
    return dataclasses.replace(QUICK, timeout_s=SHORT_S) if kind == "time-out" else QUICK


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_that_passes_changes_nothing(torch_engine: Any, files: Path, service: Service, kind: str) -> None:
    engine = connect(service, files, patience_for(kind))
    scores, replies = scores_of(torch_engine, 2), replies_of(torch_engine, 3)
    service.asked.clear()
    service.faults = [Fault(kind, holding="Question 1", times=2), Fault(kind, holding="Chat 1", times=2)]
    assert_same_scores(scored(engine, scores), scored(torch_engine, scores))
    assert replied(engine, replies) == replied(torch_engine, replies)
    assert len(service.asked) == len(scores) + len(replies) + 4, "each fault is met once and asked again once"


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_that_stays_is_the_items_own(torch_engine: Any, files: Path, service: Service, kind: str) -> None:
    engine = connect(service, files, dataclasses.replace(patience_for(kind), attempts=2))
    scores, replies = scores_of(torch_engine, 2), replies_of(torch_engine, 3)
    service.faults = [Fault(kind, holding="Question 1", times=FOR_EVER), Fault(kind, holding="Chat 1", times=FOR_EVER)]
    found = scored(engine, scores)
    lost = {request.key for request in scores[3:]}
    assert {key for key, result in found.items() if result.failed} == lost
    assert all(found[key].error.endswith("after 2 attempts") and found[key].loglikelihood_nats == 0.0 for key in lost)
    assert_same_scores(
        {key: result for key, result in found.items() if key not in lost}, scored(torch_engine, scores[:3])
    )
    first, second, third = replied(engine, replies)
    assert second.failed and second.text == "" and second.error.endswith("after 2 attempts")
    assert [first, third] == replied(torch_engine, [replies[0], replies[2]])


def test_a_refusal_is_final_and_no_failure(torch_engine: Any, files: Path, service: Service) -> None:
    engine, replies = connect(service, files), replies_of(torch_engine, 2)
    service.asked.clear()
    service.faults = [Fault("413", holding="Chat 1", times=FOR_EVER)]
    _, refused = replied(engine, replies)
    assert refused.error == "HTTP 413: on purpose" and not refused.failed
    assert len(service.asked) == 2


def test_retry_after_is_honoured(torch_engine: Any, files: Path, service: Service) -> None:
    engine, replies = connect(service, files), replies_of(torch_engine, 1)
    service.asked.clear()
    service.faults = [Fault("429", headers={"Retry_After": "0.4"})]
    assert replied(engine, replies) == replied(torch_engine, replies)
    first, second = (when for _, _, when in service.asked)
    assert 0.4 <= second - first < 2


def test_retry_after_in_all_its_forms() -> None:
    now = 1_800_000_000.0
    date = format_datetime(datetime.fromtimestamp(now + 7, UTC), usegmt=True)
    forms = [None, "", "3", "2.5", date, "-4", "soon", "9" * 12]
    assert [retry_after_s(form, now) for form in forms] == [0, 0, 3, 2.5, 7, 0, 0, servers.LONGEST_RETRY_AFTER_S]


def test_waits_double_up_to_a_limit_with_the_same_jitter_for_the_same_seed() -> None:
    patience = Patience(first_wait_s=1.0, longest_wait_s=8.0)
    for attempt, whole in enumerate((1, 2, 4, 8, 8), 1):
        waits = [patience.wait_s(attempt, f"request {i}") for i in range(50)]
        assert all(whole / 2 <= wait <= whole for wait in waits) and len(set(waits)) == 50
    assert patience.wait_s(3, "a") == Patience(first_wait_s=1.0, longest_wait_s=8.0).wait_s(3, "a")


def test_a_server_that_is_gone_ends_the_run(torch_engine: Any, files: Path, service: Service) -> None:
    engine = connect(service, files, dataclasses.replace(QUICK, attempts=2))
    service.faults = [Fault("dropped", times=FOR_EVER, after=40)]
    kept: list[GenerateResult] = []
    with pytest.raises(MissingError, match="no longer answers") as caught:
        for batch in engine.generate(replies_of(torch_engine, 100)):
            kept += batch
    assert kept and not any(result.failed for result in kept), "a failure of the server is no item's own"
    assert "the same command" in caught.value.mend[0]
    service.faults = []
    assert replied(engine, replies_of(torch_engine, 2)) == replied(torch_engine, replies_of(torch_engine, 2))


def test_a_journal_does_not_keep_what_failed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "generation.jsonl")
    journal.add([{"key": "good", "failed": False}, {"key": "bad", "failed": True}, {"key": "old"}])
    assert journal.finished("bad"), "not twice in one run"
    journal.close()
    again = Journal(tmp_path / "generation.jsonl")
    assert [again.finished(key) for key in ("good", "bad", "old")] == [True, False, True]
    again.close()


# --- what a server can do, and where it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "prompts", "why"),
    [
        ({}, "ids", ""),
        ({"takes_ids": False}, "text", ""),
        ({"echoes": False}, "ids", "the reply has no log-probabilities"),
        ({"echoes": False, "takes_ids": False}, "text", "prompt must be a string"),
        ({"completes": False}, "messages", "no such route"),
    ],
)
def test_ability(torch_engine: Any, files: Path, settings: dict[str, bool], prompts: str, why: str) -> None:
    with serving(torch_engine, **settings) as service:
        found = connect(service, files).ability
        assert found.prompts == prompts and why in found.why_no_score and bool(found.why_no_score) == bool(why)


def test_a_server_that_can_do_nothing(torch_engine: Any, files: Path, service: Service) -> None:
    service.faults = [Fault("501", times=FOR_EVER)]
    with pytest.raises(MissingError, match="answers neither prompts nor chats") as caught:
        connect(service, files)
    assert len(caught.value.found) == 5


def test_another_checkpoints_tokenizer(service: Service, files: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    content = json.loads((files / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    content["model"]["vocab"] = {**words, "q": words["z"], "z": words["q"]}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(files / "tokenizer_config.json", directory)
    with pytest.raises(UsageError, match="not the one that the server uses") as caught:
        connect(service, directory)
    assert "q" in caught.value.found[0] and "z" in caught.value.found[1]
    with (
        serving(service.engine, takes_ids=False, adds_bos=True) as other,
        pytest.raises(UsageError, match="not the one"),
    ):
        connect(other, files)


def test_a_key_is_sent_and_asked_for(torch_engine: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(torch_engine, key="s3cret") as service:
        with pytest.raises(MissingError, match="does not let us in") as caught:
            named(service, files)
        assert "PLIES_API_KEY" in caught.value.mend[0]
        monkeypatch.setenv("PLIES_API_KEY", "s3cret")
        checkpoint = named(service, files)
        assert "s3cret" not in json.dumps(checkpoint.describe())


def test_the_fingerprint_is_of_address_model_description_and_tokenizer(
    torch_engine: Any, files: Path, tmp_path: Path
) -> None:
    other = with_bos(files, tmp_path / "bos")
    with serving(torch_engine) as service:
        first, again = named(service, files), named(service, files)
        assert first.digest == again.digest and first.kind == "endpoint" and first.weights_digest == ""
        digests = {first.digest, named(service, None).digest, named(service, other).digest}
        service.context_tokens = 100
        digests.add(named(service, files).digest)
        assert len(digests) == 4
        assert first.describe()["served_model"] == MODEL


def test_the_model_may_be_left_out_where_there_is_one(torch_engine: Any, service: Service) -> None:
    found = resolve(service.url).served
    assert found is not None and found.model == MODEL
    service.listed = (MODEL, "other")
    with pytest.raises(UsageError, match="names no model") as caught:
        resolve(service.url)
    assert "other" in caught.value.found[0]


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(MissingError, match="no OpenAI-compatible server answers") as told:
            resolve(f"{url}#m")
        assert f"after {LOOK_UP.attempts} attempts" in str(told.value.found)
        with pytest.raises(SystemExit) as left:
            main(["evaluate", f"{url}#m", "--suite", "miniature", "--tokenizer", "builtin:teacher"])
        assert left.value.code == 3


@pytest.mark.parametrize(
    ("name", "url", "model"),
    [
        ("http://h:80", "http://h:80/v1", ""),
        ("http://h:80/#a/b", "http://h:80/v1", "a/b"),
        ("https://h/api/v1#m", "https://h/api/v1", "m"),
        ("http://[::1]:80/v1/", "http://[::1]:80/v1", ""),
        ("http://h/other#/a/path", "http://h/other", "/a/path"),
    ],
)
def test_addresses(name: str, url: str, model: str) -> None:
    found = parse_address(name)
    assert found is not None and (found.url, found.model) == (url, model)


@pytest.mark.parametrize(
    "name",
    [
        "ftp://h/v1",
        "http:///v1",
        "https://h/page",
        "http://h/v1?a=b",
        "http://u:p@h/v1",
        "http://h o/v1",
        "http://[/v1",
    ],
)
def test_no_addresses(name: str) -> None:
    with pytest.raises(UsageError):
        parse_address(name)
    assert parse_address("org/name") is None


def test_the_engine_of_a_checkpoint(service: Service, files: Path) -> None:
    here, there = resolve(str(files)), named(service, files)
    assert [engine_of("torch", here), engine_of("torch", there), engine_of("endpoint", there)] == [
        "torch",
        "endpoint",
        "endpoint",
    ]
    for name in ("endpoint", "tensorrt"):
        with pytest.raises(UsageError) as caught:
            engine_of(name, here)
        assert caught.value.mend


def test_vllm_that_is_not_installed_names_its_extra(files: Path) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(MissingError, match="'vllm' cannot start") as caught:
        open_engine("vllm", resolve(str(files)), EngineOptions())
    assert "perplexity-lies[vllm]" in caught.value.mend[0]


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    items = [
        {"id": f"i{i}", "subject": "", "question": f"Item {i}: {i} and {i + 1}?", "gold": i % 3, "target": str(2 * i + 1),
         "choices": [str(2 * i + 1), f"{2 * i + 2} pears", "none of them"]}
        for i in range(5)
    ]  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {"name": "own", "items": "items.jsonl", "max_new_tokens": 6, "extract": r"(\d+)", "chat_template": False}
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [task]}))
    return folder / "own.yaml"


def by_item(records: list[ItemRecord]) -> dict[tuple[str, str], ItemRecord]:
    return {(record.protocol, record.item): record for record in records}


def test_runs(service: Service, files: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both protocols over a server: the torch engine's records, but for the one item that the server cannot do."""
    monkeypatch.setattr(endpoint, "Patience", lambda: dataclasses.replace(QUICK, attempts=2))
    asked: dict[str, Any] = {"suite": suite, "out": tmp_path, "quiet": True}
    wanted = by_item(evaluate(str(files), device="cpu", dtype="float32", **asked).records())
    address = f"{service.url}#{MODEL}"

    service.faults = [
        Fault("dropped", holding="Item 4", times=FOR_EVER),
        Fault("500", holding="Item 2", times=FOR_EVER),
    ]
    run = evaluate(address, tokenizer=str(files), **asked)
    found = by_item(run.records())
    assert found.keys() == wanted.keys()
    for place, record in found.items():
        if place[1] in ("i2", "i4"):
            assert (record.status, record.score, record.scores) == (Status.ERRORED, 0.0, {})
            assert record.error.endswith("after 2 attempts") and record.choice_loglikelihoods_nats == ()
            assert record.prompt_sha256 == wanted[place].prompt_sha256
            continue
        pairs = zip(record.choice_loglikelihoods_nats, wanted[place].choice_loglikelihoods_nats, strict=True)
        assert all(abs(here - there) < NATS for here, there in pairs)
        for name in ("prompt_sha256", "status", "score", "scores", "answer", "choices", "choice_is_greedy", "text"):
            assert getattr(record, name) == getattr(wanted[place], name)
        for name in ("finish_reason", "prompt_tokens", "completion_tokens", "error", "extractor", "gold"):
            assert getattr(record, name) == getattr(wanted[place], name)
    assert run.manifest["checkpoint"]["kind"] == "endpoint" and run.manifest["protocols"] == [LOGLIKELIHOOD, GENERATION]
    assert run.manifest["asked"]["engine"] == "endpoint"

    service.faults = []
    service.asked.clear()
    again = evaluate(address, tokenizer=str(files), **asked)
    assert again.path == run.path and {record.error for record in again.records()} == {""}, "what failed is asked again"
    prompts = [service.text_of(body) for _, body, _ in service.asked]
    assert any("Item 4" in prompt for prompt in prompts) and not any("Item 1" in prompt for prompt in prompts)


def test_a_run_goes_on_where_the_server_left_it(
    service: Service, files: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "Patience", lambda: dataclasses.replace(QUICK, attempts=1))
    asked: dict[str, Any] = {"suite": suite, "out": tmp_path, "quiet": True, "tokenizer": str(files)}
    service.faults = [Fault("503", holding=f"Item {i}", times=FOR_EVER) for i in (1, 3)]
    service.faults += [Fault("dropped", holding=f"Item {i}", times=FOR_EVER) for i in (4,)]
    stop_answering_after(service, 9)
    with pytest.raises(MissingError, match="no longer answers"):
        evaluate(f"{service.url}#{MODEL}", **asked)
    service.faults = []
    run = evaluate(f"{service.url}#{MODEL}", **asked)
    assert {record.error for record in run.records()} == {""}


def stop_answering_after(service: Service, count: int) -> None:
    """From the `count`th request on every connection is dropped."""
    take = service.take_fault

    def counted(prompt: str) -> Fault | None:
        if len(service.asked) >= count and service.faults:
            return Fault("dropped")
        return take(prompt)

    service.take_fault = counted  # type: ignore[method-assign]


def test_generation_alone(
    torch_engine: Any, files: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without log-probabilities: refused for both protocols, run for one, and both run and comparison say so."""
    from perplexity_lies.compare import compare_runs
    from reports.html import write

    asked: dict[str, Any] = {"suite": suite, "out": tmp_path, "quiet": True}
    with serving(torch_engine, echoes=False) as service:
        address = f"{service.url}#{MODEL}"
        with pytest.raises(MissingError, match="log-likelihood protocol") as caught:
            evaluate(address, tokenizer=str(files), **asked)
        assert "the reply has no log-probabilities" in caught.value.found[0]
        assert "--protocol generation" in caught.value.mend[0]
        known = evaluate(address, tokenizer=str(files), protocol=GENERATION, **asked)
        chats = evaluate(address, protocol=GENERATION, **asked)
    assert {record.protocol for record in known.records()} == {GENERATION} == set(chats.manifest["protocols"])
    assert [record.text for record in known.records()] == [record.text for record in chats.records()]
    with pytest.raises(UsageError, match="there is no protocol 'generatoin'"):
        evaluate(str(files), protocol="generatoin", **asked)
    comparison = compare_runs(known.path, chats.path)
    kinds = [caution.kind for caution in comparison.cautions]
    assert kinds.count("weights") == 2 and kinds.count("protocol") == 2 and "same checkpoint" not in kinds
    assert comparison.tasks[0].generation is not None and comparison.overall is None
    page = write(comparison, tmp_path / "report.html") or tmp_path / "report.html"
    assert "are not fingerprinted" in Path(page).read_text(encoding="utf-8")


# --- transformers' own server -----------------------------------------------------------------------------------------


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
