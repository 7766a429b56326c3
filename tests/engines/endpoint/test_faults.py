"""The endpoint engine against a server that fails, for a while or for good."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.checkpoint.client import (
    LONGEST_RETRY_AFTER_S,
    Client,
    Failed,
    Patience,
    look_up,
    parse_address,
    retry_after_s,
)
from perplexity_lies.engines.base import GenerateResult
from perplexity_lies.errors import MissingError
from perplexity_lies.record.journal import Journal

from .client import QUICK, assert_same_scores, connect, replied, replies_of, scored, scores_of
from .server import FOR_EVER, MODEL, Fault, Service

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
    "lists",
)


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
    assert [retry_after_s(form, now) for form in forms] == [0, 0, 3, 2.5, 7, 0, 0, LONGEST_RETRY_AFTER_S]


def test_closing_wakes_whoever_waits(service: Service) -> None:
    """A thread that waits as long as the server wants is woken, and makes no further request."""
    service.faults = [Fault("503", times=FOR_EVER, headers={"Retry_After": "500"})]
    client = Client(service.url, QUICK, connections=1)
    with ThreadPoolExecutor(1) as pool:
        body = {"model": MODEL, "prompt": "A pear", "max_tokens": 1}
        waiting = pool.submit(client.ask, "/completions", body, lambda reply: reply)
        while not service.asked:
            time.sleep(0.01)
        time.sleep(0.2)
        assert not waiting.done()
        client.close()
        error = waiting.exception(timeout=5)
    assert isinstance(error, Failed) and len(service.asked) == 1
    with pytest.raises(Failed, match="closed"):
        client.ask("/models", None, lambda reply: reply)


@pytest.mark.parametrize("host", ["é_-", "xn--"])
def test_a_host_name_that_cannot_be_one(host: str) -> None:
    address = parse_address(f"http://{host}:80/v1#m")
    assert address is not None
    with pytest.raises(MissingError, match="no OpenAI-compatible server answers"):
        look_up(address, dataclasses.replace(QUICK, attempts=1))


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
    path = tmp_path / "generation.jsonl"
    path.write_text('{"key": "old"}\n')
    reply = {"text": "", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 0}
    journal = Journal(path)
    journal.add(
        [GenerateResult(key="good", **reply), GenerateResult(key="bad", error="HTTP 503", failed=True, **reply)]
    )
    assert journal.finished("bad"), "not twice in one run"
    journal.close()
    again = Journal(path)
    assert [again.finished(key) for key in ("good", "bad", "old")] == [True, False, True]
    again.close()
