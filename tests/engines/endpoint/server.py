"""A small OpenAI-compatible server over a real torch engine, which fails on demand in the ways that servers fail.

Answers are real: log-probabilities by one forward pass over the prompt, replies by the engine's own `generate`. Faults are
planted by kind, for the requests whose prompt holds a text, a number of times or for ever.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from perplexity_lies.engines.base import Engine, GenerateRequest
from perplexity_lies.engines.decoding import first_stop, special_texts

MODEL = "tiny/served"
FOR_EVER = 10**9
LATE_S = 3.0
"""A time-out: longer than the tests' patience for a reply."""


@dataclass
class Fault:
    """What goes wrong, and for which prompts."""

    kind: str
    holding: str = ""
    times: int = 1
    after: int = 0
    """How many of these prompts are answered first."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Service:
    """What the server serves, and the requests that it received."""

    engine: Any
    echoes: bool = True
    takes_ids: bool = True
    completes: bool = True
    key: str = ""
    listed: tuple[str, ...] = (MODEL,)
    context_tokens: int | None = None
    adds_bos: bool = False
    reads_tokens: int | None = None
    """Cuts longer prompts from the left, and tells it by its count alone."""
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any], float]] = field(default_factory=list)
    """(path, body, when) of every POST."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def take_fault(self, prompt: str) -> Fault | None:
        """The fault that this prompt meets, one time fewer to come."""
        with self.lock:
            for fault in self.faults:
                if fault.holding in prompt and fault.after > 0:
                    fault.after -= 1
                elif fault.times > 0 and fault.holding in prompt:
                    fault.times -= 1
                    return fault
        return None

    def ids_of(self, prompt: list[int] | str) -> list[int]:
        """Token ids as the server reads a prompt."""
        if isinstance(prompt, list):
            return prompt
        added = [self.engine.tokenizer.bos_token_id] if self.adds_bos else []
        return added + self.engine.encode(prompt, False)

    def text_of(self, body: dict[str, Any]) -> str:
        """The prompt of any request as text."""
        if "messages" in body:
            return self.engine.render_chat(body["messages"])
        prompt = body["prompt"]
        return self.spell(prompt) if isinstance(prompt, list) else prompt

    def spell(self, ids: list[int]) -> str:
        return str(self.engine.tokenizer.decode(ids, skip_special_tokens=False))

    def complete(self, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        """A reply of the engine; with echo, what it says of the prompt too."""
        if chat:
            ids = self.ids_of(self.text_of(body))
        else:
            ids = self.ids_of(body["prompt"])
        ids = ids if self.reads_tokens is None else ids[-self.reads_tokens :]
        raw, specials = not body.get("skip_special_tokens", True), special_texts(self.engine.tokenizer)
        stop = [text for text in body.get("stop", ()) if raw or not any(special in text for special in specials)]
        request = GenerateRequest(
            prompt=self.spell(ids), add_special_tokens=False, max_new_tokens=body["max_tokens"], stop=tuple(stop)
        )
        with self.lock:
            ((result,),) = list(self.engine.generate([request]))
            echoed = self.logprobs(ids) if body.get("echo") and self.echoes else None
        ended = "length" if result.finish_reason == "length" else "stop"
        usage = {"prompt_tokens": len(ids), "completion_tokens": result.completion_tokens}
        choice: dict[str, Any] = {"index": 0, "finish_reason": ended, "logprobs": echoed}
        text = self.spell(list(result.token_ids)) if raw else result.text
        text = text[: first_stop(text, stop)] if first_stop(text, stop) >= 0 else text
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {"choices": [choice], "usage": usage}

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> dict[str, Any]:
        """Log-probabilities of each prompt token after the first and of the likeliest there; one generated token at the end."""
        found = self.engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
        made = int(found[-1].argmax())
        whole = [*ids, made]
        values = [None, *(float(found[i, token]) for i, token in enumerate(whole[1:]))]
        tops = [None] + [{self.spell([int(row.argmax())]): float(row.max())} for row in found]
        return {"tokens": [self.spell([token]) for token in whole], "token_logprobs": values, "top_logprobs": tops}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, *_: Any) -> None:
        """Not on the test's terminal."""

    def send(self, status: int, content: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.send(status, json.dumps({"error": {"message": message}}).encode(), **headers)

    def do_GET(self) -> None:
        if self.service.key and self.headers.get("Authorization") != f"Bearer {self.service.key}":
            return self.refuse(401, "no key")
        entries = [{"id": name, "object": "model", "created": int(time.time())} for name in self.service.listed]
        if self.service.context_tokens:
            entries = [{**entry, "max_model_len": self.service.context_tokens} for entry in entries]
        self.send(200, json.dumps({"object": "list", "data": entries}).encode())

    def do_POST(self) -> None:
        service = self.service
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.asked.append((self.path, body, time.monotonic()))
        chat = self.path.endswith("/chat/completions")
        if not chat and not service.completes:
            return self.refuse(404, "no such route")
        if not chat and isinstance(body["prompt"], list) and not service.takes_ids:
            return self.refuse(400, "prompt must be a string")
        if body["model"] != MODEL:
            return self.refuse(404, f"the model {body['model']} does not exist")
        fault = service.take_fault(service.text_of(body))
        if fault is not None:
            return self.fail(fault, body, chat)
        self.send(200, json.dumps(service.complete(body, chat=chat)).encode())

    def fail(self, fault: Fault, body: dict[str, Any], chat: bool) -> None:
        if fault.kind.isdigit():
            return self.refuse(int(fault.kind), "on purpose", **fault.headers)
        if fault.kind == "time-out":
            time.sleep(LATE_S)
            self.close_connection = True
        elif fault.kind == "dropped":
            self.close_connection = True
        elif fault.kind == "not JSON":
            self.send(200, b"<html>busy</html>")
        elif fault.kind == "cut JSON":
            self.send(200, json.dumps(self.service.complete(body, chat=chat)).encode()[:-20])
        elif fault.kind == "cut connection":
            whole = json.dumps(self.service.complete(body, chat=chat)).encode()
            self.send(200, whole[: len(whole) // 2], length=len(whole))
            self.close_connection = True
        elif fault.kind == "other JSON":
            self.send(200, b'{"choices": []}')
        elif fault.kind == "lists":  # where the API has objects
            reply = self.service.complete(body, chat=chat)
            reply["usage"] = ["tokens"]
            if reply["choices"][0]["logprobs"]:
                reply["choices"][0]["logprobs"]["top_logprobs"] = [["a", -1.0]] * len(
                    self.service.ids_of(body["prompt"])
                )
            self.send(200, json.dumps(reply).encode())
        elif fault.kind in ("no number", "nothing likeliest"):
            reply = self.service.complete(body, chat=chat)
            value = float("nan") if fault.kind == "no number" else -1.0
            reply["choices"][0] |= {"finish_reason": "abort", "logprobs": self.without_tops(body, value)}
            self.send(200, json.dumps(reply).encode())
        else:
            raise ValueError(fault.kind)

    def without_tops(self, body: dict[str, Any], value: float) -> dict[str, Any]:
        count = len(self.service.ids_of(body["prompt"]))
        return {
            "tokens": ["a"] * count,
            "token_logprobs": [None] + [value] * (count - 1),
            "top_logprobs": [None] * count,
        }


class Listener(ThreadingHTTPServer):
    """With room for as many callers as the engine has slots."""

    request_queue_size = 128
    daemon_threads = True


@contextlib.contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[Service]:
    """A running server on a free port of this machine."""
    service = Service(engine, **settings)
    handler = type("Bound", (Handler,), {"service": service})
    server = Listener(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
