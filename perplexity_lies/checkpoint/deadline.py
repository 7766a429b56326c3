"""One deadline for a whole request: httpx has time-outs for single reads, which a server that sends a byte a second never meets.

    clock = Clock()
    watch(client, clock)
    clock.start(20.0)
    client.post(...)        httpx.ReadTimeout once 20 seconds are over, wherever it is: connecting, headers, body

The connections of an httpx client read through a stream that gives each read what is left of the time of its thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx


class Clock(threading.local):
    """When the request of this thread must be over."""

    end_s = math.inf

    def start(self, seconds: float) -> None:
        """Begin the time of a request."""
        self.end_s = time.monotonic() + seconds

    def left_s(self, timeout: float | None, late: type[Exception]) -> float | None:
        """`timeout`, but no more than what is left. Raises `late` where nothing is."""
        left = self.end_s - time.monotonic()
        if left <= 0:
            raise late("the time for a whole reply is over")
        return min(left, math.inf if timeout is None else timeout) if left < math.inf else timeout


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, clock: Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left_s(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left_s(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *given: Any, **named: Any) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(*given, **named), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend, clock: Clock) -> None:
        self._backend, self._clock = backend, clock

    def connect_tcp(self, *given: Any, **named: Any) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(*given, **named), self._clock)

    def connect_unix_socket(self, *given: Any, **named: Any) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_unix_socket(*given, **named), self._clock)

    @property
    def sleep(self) -> Callable[[float], None]:
        return self._backend.sleep


def watch(client: httpx.Client, clock: Clock) -> None:
    """Have the connections of `client` keep to `clock`. httpx has no public way to them."""
    transports: Iterable[Any] = (client._transport, *client._mounts.values())
    for transport in transports:
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend, clock)
