"""Client for an OpenAI-compatible server: parse the address, list its models, send requests with retries.

    address = parse_address("http://127.0.0.1:8000/v1#my-model")
    served = look_up(address, Patience())
    client = Client(served.url, Patience(), connections=8)
    client.ask("/completions", {"model": served.model, "prompt": "2+2="}, read=lambda reply: reply["choices"][0]["text"])

Retried: time-outs, dropped connections, HTTP 408, 425, 429 and 5xx but 501, and replies that `read` cannot read. Any other
refusal is final. tenacity runs the attempts and the waits, which `close` interrupts. Two things it does not have are here:
jitter that a seed and a request's name decide (Brooker 2015, "Exponential Backoff And Jitter", half of the wait kept), and
the reading of a Retry-After header.

httpx and tenacity are imported when a client is made: checkpoints in files need neither.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from perplexity_lies.checkpoint.secret import API_KEY, hidden, hidden_in, read_key
from perplexity_lies.errors import MissingError, UsageError

FORM = "http://HOST:PORT/v1#MODEL"
HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts that are reached without a proxy."""

RETRIED = frozenset({408, 425, 429})
"""HTTP statuses below 500 that are retried."""
NOT_IMPLEMENTED = 501
LOCKED = frozenset({401, 403})

MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError)
"""What reading a reply raises where it has another form."""

LONGEST_RETRY_AFTER_S = 600.0
MOST_REPLY_BYTES = 1 << 26
"""A reply is read up to this size: 64 MiB hold the log-probabilities of 200,000 tokens."""
WORDS = 300
"""Characters of a server's error message that are kept."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """`http(s)://HOST[:PORT][/v1][#MODEL]`."""

    url: str
    """Ends in `/v1`, without a slash."""
    model: str
    """Empty where the address names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often and how long a request is tried."""

    attempts: int = 6
    first_wait_s: float = 0.5
    """Doubled at each further attempt."""
    longest_wait_s: float = 30.0
    timeout_s: float = 600.0
    """Until the whole reply is here: a long generation on a busy server takes minutes."""
    connect_timeout_s: float = 10.0
    seed: int = 0
    """Seed of the jitter."""

    def wait_s(self, attempt: int, name: str) -> float:
        """Seconds to wait after attempt number `attempt` (from 1): half of the back-off, plus up to half by chance."""
        whole = min(self.longest_wait_s, self.first_wait_s * 2 ** (attempt - 1))
        return whole * (1 + random.Random(f"{self.seed}:{name}:{attempt}").random()) / 2


class Unanswered(Exception):
    """A request without a usable reply; the text says why."""

    def __init__(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        """HTTP status of the last reply; 0 where nothing came back, below 300 for a reply that could not be read."""
        self.retry_after_s = retry_after_s
        """Wait that the server wants before the next attempt."""


class Refused(Unanswered):
    """The server will not do this, however often it is tried."""


class Failed(Unanswered):
    """This attempt failed and another one might not; out of `Client.ask`: every attempt failed."""


def parse_address(name: str) -> Address | None:
    """The address in `name`, None where it has no `://`.

    Raises UsageError for an address that cannot be an endpoint's: another scheme, a password in it, a web page.
    """
    if "://" not in name:
        return None
    try:
        parts = urlsplit(name)
    except ValueError as error:
        raise UsageError(f"{name!r} is not an address", found=str(error), mend=FORM) from error
    path = parts.path.rstrip("/")
    if "@" in parts.netloc:
        raise UsageError(
            "an address with a password in it would be kept in the run's manifest",
            found=f"a user name before {parts.hostname}",
            mend=f"{API_KEY}=... in the environment",
        )
    a_page = bool(path) and not path.endswith("/v1") and not parts.fragment
    if parts.scheme not in ("http", "https") or not HOST.fullmatch(parts.netloc) or parts.query or a_page:
        raise UsageError(
            f"checkpoint {name!r} is an address, but not an endpoint's",
            found="an endpoint ends in /v1 or names its model after #",
            mend=(FORM, "from the hub: ORG/NAME without the address"),
        )
    return Address(f"{parts.scheme}://{parts.netloc}{path or '/v1'}", parts.fragment)


def retry_after_s(value: str | None, now_s: float) -> float:
    """Seconds that a Retry-After header wants (RFC 9110, 10.2.3: a number or a date); 0 where it is absent or malformed."""
    if not value:
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return min(max(0.0, when.timestamp() - now_s), LONGEST_RETRY_AFTER_S)


def _told(content: Any) -> str:
    """What an error's body tells: `error`, or its message, or `detail` or `message` beside it."""
    found = content.get("error", content.get("detail", content.get("message")))
    text = found.get("message", found) if isinstance(found, dict) else found
    return " ".join(str(text).split())[:WORDS] if text else ""


def _own_words(raw: bytes) -> str:
    """The server's error message, on one line."""
    with contextlib.suppress(*MALFORMED):
        if words := _told(json.loads(raw)):
            return words
    return " ".join(raw[: 8 * WORDS].decode("utf-8", "replace").split())[:WORDS]


def _refuse_error(content: Any, status: int) -> None:
    """Raises Refused or Failed for a reply that is an error in spite of its HTTP status: `{"error": {"code": 400, ...}}`."""
    if not isinstance(content, dict) or content.get("choices") or content.get("data"):
        return
    found = content.get("error")
    if not found and content.get("object") != "error":
        return
    code = (found if isinstance(found, dict) else content).get("code")
    reason = f"HTTP {status} with an error{f' {code}' if code else ''}: {_told(content)}"
    number = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 0
    if 400 <= number < 600 and not may_pass(number):
        raise Refused(number, reason)
    raise Failed(status, reason)


def _unpacked(chunks: Iterable[bytes], encoding: str) -> bytes:
    """A whole body, gzip unpacked. Raises Failed for one of more than `MOST_REPLY_BYTES` or in another encoding."""
    if encoding not in ("", "identity", "gzip", "deflate"):
        raise Failed(200, f"a reply in the encoding {encoding[:20]!r}, which was not asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else None
    whole = bytearray()
    try:
        for chunk in chunks:
            whole += unpack.decompress(chunk, MOST_REPLY_BYTES + 1 - len(whole)) if unpack else chunk
            if len(whole) > MOST_REPLY_BYTES:
                raise Failed(200, f"a reply of more than {MOST_REPLY_BYTES >> 20} MiB")
    except zlib.error as error:
        raise Failed(200, f"a reply that is no {encoding}: {error}") from error
    return bytes(whole)


class Client:
    """Connections to one server, used from any number of threads."""

    def __init__(self, url: str, patience: Patience, connections: int) -> None:
        """Raises MissingError where httpx or tenacity is not installed, UsageError for a key that cannot be sent."""
        try:
            import httpx
            import tenacity  # noqa: F401

            from perplexity_lies.checkpoint.deadline import Clock, watch
        except ImportError as error:
            raise MissingError(
                f"{url} cannot be asked", found=str(error), mend="pip install 'perplexity-lies[torch]'"
            ) from error
        self.url, self.patience, self._key = url, patience, read_key()
        self._closing, self._clock = threading.Event(), Clock()
        self._client = httpx.Client(
            headers={"Accept-Encoding": "gzip"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            timeout=httpx.Timeout(patience.timeout_s, connect=patience.connect_timeout_s),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=urlsplit(url).hostname not in LOOPBACK,
        )
        watch(self._client, self._clock)

    def ask(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T], name: str = "") -> T:
        """POST `body` to `path` (GET where it is None), retry, and return `read` of the JSON reply.

        `read` raises one of `MALFORMED` for a reply that it cannot use; `name` gives each request a jitter of its own.
        Raises Refused, or Failed when patience is at its end.
        """
        import tenacity

        def wait_s(state: Any) -> float:
            return max(self.patience.wait_s(state.attempt_number, name), state.outcome.exception().retry_after_s)

        def log(state: Any) -> None:
            why, wait, count = state.outcome.exception(), state.upcoming_sleep, state.attempt_number
            logger.warning("%s%s: %s; tried again in %.1f s (%d)", self.url, path, why, wait, count)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Failed),
            stop=tenacity.stop_after_attempt(self.patience.attempts) | tenacity.stop_when_event_set(self._closing),
            wait=wait_s,
            sleep=tenacity.sleep_using_event(self._closing),
            before_sleep=log,
            reraise=True,
        )
        try:
            return retrying(self._attempt, path, body, read)
        except Failed as error:
            count = retrying.statistics["attempt_number"]
            raise Failed(error.status, f"{error}, after {count} attempts") from error

    def _attempt(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        """One attempt. Raises Failed where another one might succeed, else Refused; neither holds the key."""
        if self._closing.is_set():
            raise Failed(0, "the client was closed")
        try:
            status, raw, retry_after = self._exchange(path, body)
            if not 200 <= status < 300:
                reason = f"HTTP {status}: {_own_words(raw)}"
                if not may_pass(status):
                    raise Refused(status, reason)
                raise Failed(status, reason, retry_after_s(retry_after, time.time()))
            try:
                content = hidden_in(json.loads(raw), self._key)
                _refuse_error(content, status)
                return read(content)
            except MALFORMED as error:
                reason = f"a malformed reply ({type(error).__name__}: {error}): {_own_words(raw)}"
                raise Failed(status, reason[: 2 * WORDS]) from error
        except Unanswered as error:
            raise type(error)(error.status, hidden(str(error), self._key), error.retry_after_s) from None

    def _exchange(self, path: str, body: dict[str, Any] | None) -> tuple[int, bytes, str | None]:
        """(status, body, Retry-After) of one reply. Raises Failed where none is whole and in time."""
        import httpx

        self._clock.start(self.patience.timeout_s)
        try:
            with self._client.stream("GET" if body is None else "POST", self.url + path, json=body) as reply:
                raw = _unpacked(reply.iter_raw(), reply.headers.get("Content-Encoding", "").strip().lower())
                return reply.status_code, raw, reply.headers.get("Retry-After")
        except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:  # the last two: no possible host name
            raise Failed(0, f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def close(self) -> None:
        """Wake every waiting thread and close the connections."""
        self._closing.set()
        self._client.close()


def may_pass(status: int) -> bool:
    """Whether a request with this HTTP status is worth another attempt."""
    return status in RETRIED or (status >= 500 and status != NOT_IMPLEMENTED)


def locked_out(url: str, error: Unanswered) -> MissingError:
    """The error for a refusal whose status is in `LOCKED`."""
    return MissingError(
        f"the server at {url} does not let us in", found=str(error), mend=f"{API_KEY}=... in the environment"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model, as its server describes it."""

    url: str
    model: str
    entry: dict[str, Any]
    """The model's entry of /v1/models without `VOLATILE`; empty where the server does not list it."""
    context_tokens: int | None
    """vLLM's `max_model_len`; None where the server does not say."""


VOLATILE = frozenset({"created", "permission"})
"""Keys of an entry that change when the server restarts."""


def _entries(content: Any) -> dict[str, dict[str, Any]]:
    return {str(entry["id"]): dict(entry) for entry in content["data"]}


def look_up(address: Address, patience: Patience) -> ServedModel:
    """The model at `address`, or the only one that its server lists.

    Raises MissingError when nobody answers or the key is refused, UsageError when it is unclear which model is meant.
    """
    listed: dict[str, dict[str, Any]] = {}
    try:
        with contextlib.closing(Client(address.url, patience, connections=1)) as client:
            listed = client.ask("/models", None, _entries)
    except Unanswered as error:  # a server that answers, but not this, need not list its models
        if error.status == 0:
            raise MissingError(
                f"no OpenAI-compatible server answers at {address.url}", found=str(error),
                mend=("start it, or mend the address: " + FORM, f"curl {address.url}/models"),
            ) from error  # fmt: skip
        if error.status in LOCKED:
            raise locked_out(address.url, error) from error
    model = address.model or (next(iter(listed)) if len(listed) == 1 else "")
    if not model:
        raise UsageError(
            f"{address.url} names no model",
            found=f"the server lists {', '.join(sorted(listed)[:8]) or 'none'}",
            mend=f"{address.url}#{next(iter(sorted(listed)), 'MODEL')}",
        )
    entry = {key: value for key, value in listed.get(model, {}).items() if key not in VOLATILE}
    context = entry.get("max_model_len")
    stated = context if type(context) is int and context > 1 else None
    return ServedModel(url=address.url, model=model, entry=entry, context_tokens=stated)
