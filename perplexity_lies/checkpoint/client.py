"""An OpenAI-compatible server: its address, what it lists, and asking it until it answers or it is plain that it will not.

Time-outs, dropped connections, HTTP 408, 425, 429 and 5xx, and replies that are not what was asked for are asked again with
exponential back-off and jitter (Brooker 2015, "Exponential Backoff And Jitter", the half that is not jittered kept), or
after the server's own Retry-After. Any other refusal is final.

Knows nothing of tokens, engines or what the bodies mean. httpx is imported when a server is asked.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from perplexity_lies.errors import MissingError, UsageError

if TYPE_CHECKING:
    import httpx

API_KEY = "PLIES_API_KEY"
"""Environment variable whose value goes to the server as a bearer token, and nowhere else."""

FORM = "http://HOST:PORT/v1#MODEL"
HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Asked past any proxy."""

AGAIN = frozenset({408, 425, 429})
"""HTTP statuses below 500 that may pass."""
NOT_IMPLEMENTED = 501
LOCKED = frozenset({401, 403})

LONGEST_RETRY_AFTER_S = 600.0
WORDS = 300
"""Characters of a server's own words that are kept."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """`http(s)://HOST[:PORT][/v1][#MODEL]`."""

    url: str
    """Up to and with `/v1`, no slash at its end."""
    model: str
    """Empty where the server is to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server is waited for."""

    attempts: int = 6
    first_wait_s: float = 0.5
    """Doubled at each attempt."""
    longest_wait_s: float = 30.0
    timeout_s: float = 600.0
    """For a whole reply: a long generation on a busy server takes minutes."""
    connect_timeout_s: float = 10.0
    seed: int = 0
    """Of the jitter."""

    def wait_s(self, attempt: int, name: str) -> float:
        """Before asking `name` again after its `attempt`th time (from 1): half of the back-off, and up to half more by chance."""
        whole = min(self.longest_wait_s, self.first_wait_s * 2 ** (attempt - 1))
        return whole * (1 + random.Random(f"{self.seed}:{name}:{attempt}").random()) / 2


class Refused(Exception):
    """The server will not do this, whenever it is asked."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Failed(Exception):
    """The server could not do this in as many attempts as there is patience for."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """Of the last attempt: 0 where nothing came back, below 300 for a malformed reply."""


def parse_address(name: str) -> Address | None:
    """The address in `name`; None for a string that is none.

    Raises UsageError for one that cannot be an endpoint: another scheme, a password in it, a web page.
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
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number or a date); 0 for none or nonsense."""
    if not value:
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return min(max(0.0, when.timestamp() - now_s), LONGEST_RETRY_AFTER_S)


def _own_words(reply: httpx.Response) -> str:
    """A refusal in the server's words, on one line."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        content = reply.json()
        found = content.get("error", content.get("detail", content.get("message")))
        text = found.get("message") if isinstance(found, dict) else found
        if text:
            return " ".join(str(text).split())[:WORDS]
    return " ".join(reply.text.split())[:WORDS]


class Server:
    """One server, asked over HTTP from any number of threads."""

    def __init__(self, url: str, patience: Patience, connections: int) -> None:
        """Raises MissingError where httpx is not installed."""
        try:
            import httpx
        except ImportError as error:
            raise MissingError(
                f"{url} cannot be asked", found=str(error), mend="pip install 'perplexity-lies[torch]'"
            ) from error
        self.url, self.patience = url, patience
        key = os.environ.get(API_KEY)
        self._closing = threading.Event()
        self._request_error = httpx.RequestError
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(patience.timeout_s, connect=patience.connect_timeout_s),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=urlsplit(url).hostname not in LOOPBACK,
        )

    def ask(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T], name: str = "") -> T:
        """`read` of the JSON that POST `path` gives for `body` (GET where it is None).

        `read` raises ValueError, KeyError, TypeError or IndexError for a reply that is not what was asked for; `name` tells
        requests apart in the jitter. Raises Refused, or Failed when patience is at its end.
        """
        reason, status, attempt = "not asked", 0, 0
        while attempt < self.patience.attempts and not self._closing.is_set():
            attempt += 1
            wait_s = self.patience.wait_s(attempt, name)
            try:
                reply = self._once(path, body)
            except (self._request_error, UnicodeError) as error:  # the second of a host that cannot be one
                reason, status = f"{type(error).__name__}: {error}".rstrip(": "), 0
            else:
                status = reply.status_code
                if reply.is_success:
                    try:
                        return read(reply.json())
                    except (ValueError, KeyError, TypeError, IndexError) as error:
                        reason = f"a malformed reply ({type(error).__name__}: {error})"
                else:
                    reason = f"HTTP {status}: {_own_words(reply)}"
                    if not may_pass(status):
                        raise Refused(status, reason)
                    wait_s = max(wait_s, retry_after_s(reply.headers.get("Retry-After"), time.time()))
            if attempt < self.patience.attempts:
                logger.warning("%s%s: %s; asked again in %.1f s (%d)", self.url, path, reason, wait_s, attempt)
                self._closing.wait(wait_s)
        raise Failed(status, f"{reason}, after {attempt} attempts")

    def _once(self, path: str, body: dict[str, Any] | None) -> httpx.Response:
        if body is None:
            return self._client.get(self.url + path)
        return self._client.post(self.url + path, json=body)

    def close(self) -> None:
        """Wake whoever waits, and hang up."""
        self._closing.set()
        self._client.close()


def may_pass(status: int) -> bool:
    """Whether another try might not meet this HTTP status."""
    return status in AGAIN or (status >= 500 and status != NOT_IMPLEMENTED)


def locked_out(url: str, error: Refused) -> MissingError:
    """What to tell of a refusal whose status is one of `LOCKED`."""
    return MissingError(
        f"the server at {url} does not let us in", found=str(error), mend=f"{API_KEY}=... in the environment"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as its server describes it."""

    url: str
    model: str
    entry: dict[str, Any]
    """The model's entry of /v1/models without what changes by itself; empty where the server does not list it."""
    context_tokens: int | None
    """Where the server says so (vLLM's `max_model_len`)."""


VOLATILE = frozenset({"created", "permission"})
"""Keys of an entry that a restart changes."""


def _entries(content: Any) -> dict[str, dict[str, Any]]:
    return {str(entry["id"]): dict(entry) for entry in content["data"]}


def look_up(address: Address, patience: Patience) -> Served:
    """What the server at `address` serves.

    Raises MissingError when nobody answers or the key is not taken, UsageError when the address leaves open which model.
    """
    server = Server(address.url, patience, connections=1)
    try:
        listed = server.ask("/models", None, _entries)
    except Failed as error:
        if error.status == 0:
            raise MissingError(
                f"no OpenAI-compatible server answers at {address.url}", found=str(error),
                mend=("start it, or mend the address: " + FORM, f"curl {address.url}/models"),
            ) from error  # fmt: skip
        listed = {}
    except Refused as error:
        if error.status in LOCKED:
            raise locked_out(address.url, error) from error
        listed = {}
    finally:
        server.close()
    model = address.model or (next(iter(listed)) if len(listed) == 1 else "")
    if not model:
        raise UsageError(
            f"{address.url} names no model",
            found=f"the server lists {', '.join(sorted(listed)[:8]) or 'none'}",
            mend=f"{address.url}#{next(iter(sorted(listed)), 'MODEL')}",
        )
    entry = {key: value for key, value in listed.get(model, {}).items() if key not in VOLATILE}
    context = entry.get("max_model_len")
    return Served(
        url=address.url, model=model, entry=entry, context_tokens=context if isinstance(context, int) else None
    )
