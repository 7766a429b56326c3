"""Replies that are odd, hostile or slow: the record says what happened, the key stays secret, nothing ends the run."""

from __future__ import annotations

import dataclasses
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from perplexity_lies.checkpoint import client as client_module
from perplexity_lies.checkpoint.client import Client, Failed, Refused, look_up, parse_address
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, GenerateResult
from perplexity_lies.engines.endpoint import EndpointEngine
from perplexity_lies.engines.replies import read_logprobs, read_reply, tokens_not_read, usage_of
from perplexity_lies.errors import MissingError, UsageError

from .client import QUICK

KEY = "sk-not-to-be-shown-42"
FEW = dataclasses.replace(QUICK, attempts=2, first_wait_s=0.01)

Script = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(handler: BaseHTTPRequestHandler, content: Any, status: int = 200, **headers: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(raw)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


def chat(text: Any, finish: Any = "stop", prompt_tokens: int = 50, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    return {"choices": [choice], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 7}}


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], str]]:
    """`scripted(answer)` -> the address of a server whose chats `answer(handler, body)` answers, but for one-token probes."""
    servers = []

    def start(answer: Script) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Not on the test's terminal."""

            def do_GET(self) -> None:
                send(self, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.endswith("/chat/completions"):
                    return send(self, {"error": {"message": "no such route"}}, 404)
                if body["max_tokens"] == 1:
                    return send(self, chat("yes"))
                answer(self, body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(url: str, *texts: str, **patience: Any) -> list[GenerateResult]:
    engine = EndpointEngine(resolve(f"{url}#m"), EngineOptions(slots=2), dataclasses.replace(FEW, **patience))
    requests = [
        GenerateRequest(prompt=text, add_special_tokens=False, max_new_tokens=9, messages=(("user", text),))
        for text in texts or ("a question",)
    ]
    found = {result.key: result for batch in engine.generate(requests) for result in batch}
    return [found[request.key] for request in requests]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (f"{KEY}\n", "ends in a line break"),
        (f"{KEY}ü", "not ASCII"),
        (f"{KEY} x", "a blank"),
        (f"{KEY}\x1b", "control"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, key: str, words: str) -> None:
    monkeypatch.setenv("PLIES_API_KEY", key)
    address = parse_address("http://127.0.0.1:9/v1#m")
    assert address is not None
    with pytest.raises(UsageError, match="PLIES_API_KEY cannot be sent") as caught:
        look_up(address, QUICK)
    assert words in caught.value.found[0] and KEY not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_key_that_is_echoed_is_taken_out(
    scripted: Callable[[Script], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    monkeypatch.setenv("PLIES_API_KEY", KEY)
    error = {"error": {"message": f"wrong key: Bearer {KEY}", "code": status}}
    (result,) = asked(scripted(lambda handler, _: send(handler, error, status)))
    assert "wrong key: Bearer [PLIES_API_KEY]" in result.error and KEY not in caplog.text
    (result,) = asked(scripted(lambda handler, _: send(handler, chat(f"it is {KEY}", reasoning=KEY), 200)))
    assert result.text == "it is [PLIES_API_KEY]"
    (result,) = asked(scripted(lambda handler, _: send(handler, f"<html>{KEY}</html>".encode(), 200)))
    assert KEY not in result.error and "<html>[PLIES_API_KEY]" in result.error


def test_a_key_that_is_a_word_stays_in_replies(
    scripted: Callable[[Script], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLIES_API_KEY", "EMPTY")
    (result,) = asked(scripted(lambda handler, _: send(handler, chat("EMPTY"))))
    assert result.text == "EMPTY"


@pytest.mark.parametrize(
    ("content", "words", "failed"),
    [
        ({"error": {"message": "context of 4096 tokens exceeded", "code": 400}}, "error 400: context of 4096", False),
        ({"error": {"message": "busy", "code": 503}}, "error 503: busy", True),
        ({"error": "out of memory"}, "with an error: out of memory", True),
        ({"error": {"type": "odd"}}, "{'type': 'odd'}", True),
        ({"object": "error", "message": "too long", "code": "400"}, "error 400: too long", False),
        ({"choices": [], "detail": "nothing here"}, "IndexError: list index out of range): nothing here", True),
        (b"data: {}", "data: {}", True),
    ],
)
def test_an_error_within_a_200_tells_the_servers_words(
    scripted: Callable[[Script], str], content: Any, words: str, failed: bool
) -> None:
    (result,) = asked(scripted(lambda handler, _: send(handler, content)))
    assert words in result.error and result.failed is failed


@pytest.mark.parametrize(
    ("reply", "text", "finish", "error"),
    [
        (chat("B", "eos"), "B", "stop", ""),
        (chat("B", "STOP"), "B", "stop", ""),
        (chat("B", "stop_sequence"), "B", "stop_string", ""),
        (chat("B", "max_tokens"), "B", "length", ""),
        (chat([{"type": "text", "text": "B"}]), "B", "stop", ""),
        (chat("half \ud800"), "half ?", "stop", ""),
        (chat(None, "length", reasoning_content="hm"), "<think>\nhm", "length", ""),
        (chat(None, refusal="no"), "", "stop", "the server refused: no"),
        (chat(None, "tool_calls", tool_calls=[{"id": "c"}]), "", "stop", "a call of a tool"),
        (chat("", "content_filter"), "", "stop", "content filter withheld"),
        (chat("B", None), "", "length", "finish_reason None"),
        (chat(7), "", "length", "a reply of type int"),
    ],
)
def test_replies_in_other_words(
    scripted: Callable[[Script], str], reply: dict[str, Any], text: str, finish: str, error: str
) -> None:
    (result,) = asked(scripted(lambda handler, _: send(handler, reply)))
    assert (result.text, result.finish_reason) == (text, finish)
    assert error in result.error and bool(result.error) is bool(error)


def test_a_prompt_that_the_server_cut_is_noticed(scripted: Callable[[Script], str]) -> None:
    short, long = "one two three", " ".join(["word"] * 90)
    url = scripted(
        lambda handler, body: send(handler, chat("B", prompt_tokens=min(40, 3 * len(str(body["messages"])))))
    )
    found = asked(url, short, long)
    assert [result.truncated_tokens for result in found] == [0, 50] and not any(result.error for result in found)


def test_counts_that_are_none() -> None:
    for count in ("50", -1, True, 1e3, 1 << 40, None):
        assert usage_of({"usage": {"prompt_tokens": count}}, "prompt_tokens") is None
    assert tokens_not_read({"usage": {"prompt_tokens": 0}}, [("user", "a b")]) == 0, "a cached prompt may count as none"
    assert tokens_not_read({"usage": {"prompt_tokens": 3}}, [("user", "a b")], at_least=9) == 6


@pytest.mark.parametrize("value", [0.5, float("inf"), float("nan"), "x", 10**400])
def test_log_probabilities_that_are_none(value: Any) -> None:
    found = {"token_logprobs": [None, value], "top_logprobs": [None, {}], "tokens": ["a", "b"]}
    with pytest.raises(client_module.MALFORMED):
        read_logprobs({"choices": [{"logprobs": found}]}, 2)


def test_a_refusal_of_one_prompt_is_not_a_locked_door(scripted: Callable[[Script], str]) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        bad = "drop table" in str(body)
        send(handler, {"error": "blocked by a filter"} if bad else chat("B"), 403 if bad else 200)

    found = asked(scripted(answer), "a", "drop table x", "b", "c")
    assert [result.text for result in found] == ["B", "", "B", "B"]
    assert found[1].error == "HTTP 403: blocked by a filter" and not found[1].failed


def test_what_was_answered_is_kept_where_the_door_is_locked(scripted: Callable[[Script], str]) -> None:
    url = scripted(lambda handler, body: send(handler, chat("B")))
    engine = EndpointEngine(resolve(f"{url}#m"), EngineOptions(slots=1), FEW)
    answer, kept = engine._answer, []

    def locked(client: Client, job: Any) -> Any:
        if len(kept) >= 2:
            raise MissingError("does not let us in")
        return answer(client, job)

    engine._answer = locked  # type: ignore[method-assign]
    requests = [
        GenerateRequest(prompt=str(i), add_special_tokens=False, max_new_tokens=9, messages=(("user", str(i)),))
        for i in range(5)
    ]
    with pytest.raises(MissingError):
        for batch in engine.generate(requests):
            kept += batch
    assert len(kept) == 2


def drip(handler: BaseHTTPRequestHandler, head: bytes) -> None:
    """Half a byte a tenth of a second, for ever, after `head`."""
    try:
        handler.wfile.write(head)
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
    except OSError:
        pass


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_byte_at_a_time_meets_the_deadline(scripted: Callable[[Script], str], head: bytes) -> None:
    client = Client(
        scripted(lambda handler, _: drip(handler, head)), dataclasses.replace(FEW, attempts=1, timeout_s=0.6), 1
    )
    began = time.monotonic()
    with pytest.raises(Failed, match="ReadTimeout"):
        client.ask("/chat/completions", {"max_tokens": 9}, lambda reply: reply)
    assert time.monotonic() - began < 3
    client.close()


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_without_end_is_not_read_to_its_end(
    scripted: Callable[[Script], str], monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(client_module, "MOST_REPLY_BYTES", 1 << 20)
    whole = gzip.compress(bytes(1 << 23)) if packed else bytes(1 << 22)
    headers = {"Content_Encoding": "gzip"} if packed else {}

    def answer(handler: BaseHTTPRequestHandler, _: Any) -> None:
        try:
            send(handler, whole, **headers)
        except OSError:
            pass

    (result,) = asked(scripted(answer), attempts=1)
    assert "a reply of more than 1 MiB" in result.error and result.failed


def test_gzip_is_read_and_other_encodings_are_told(scripted: Callable[[Script], str]) -> None:
    packed = gzip.compress(json.dumps(chat("B")).encode())
    (result,) = asked(scripted(lambda handler, _: send(handler, packed, Content_Encoding="gzip")))
    assert result.text == "B"
    (result,) = asked(scripted(lambda handler, _: send(handler, packed, Content_Encoding="br")))
    assert "encoding 'br'" in result.error


def test_a_prompt_that_no_tokenizer_takes_is_the_items_own(scripted: Callable[[Script], str]) -> None:
    url = scripted(lambda handler, _: send(handler, chat("B")))
    engine = EndpointEngine(resolve(f"{url}#m"), EngineOptions(slots=2), FEW)
    make = engine._generate_job
    engine._generate_job = lambda request: 1 / 0 if request.prompt == "1" else make(request)  # type: ignore[assignment]
    requests = [
        GenerateRequest(prompt=str(i), add_special_tokens=False, max_new_tokens=9, messages=(("user", str(i)),))
        for i in range(3)
    ]
    found = {result.key: result for batch in engine.generate(requests) for result in batch}
    assert [bool(found[request.key].error) for request in requests] == [False, True, False]


def test_a_refusal_says_its_status() -> None:
    with pytest.raises(Refused) as caught:
        client_module._refuse_error({"error": {"code": 422, "message": "no"}}, 200)
    assert caught.value.status == 422
    assert read_reply(chat("a b"), ("b",)) == ("a ", "stop_string")
