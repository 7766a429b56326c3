"""evalscope's mathematics in one child process instead of one a call.

evalscope 1.14 forks this process for each extraction and each comparison, so that one that hangs can be killed. To fork a
process with torch in it took 0.03 to 0.12 s (`benchmarks/judge_math.py`: 3.4 s for 50 items, 0.1 s this way; more in a run,
whose process is larger). Here the child is forked once and asked again;
the functions, the deadline and what is raised stay evalscope's. A child that misses the deadline is killed and made anew.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

CALLS_OF_A_CHILD = 500
"""Then a fresh one is forked, so that what sympy keeps does not grow."""


class WarmChild:
    """Runs functions of evalscope's parser, which bear their inner function as `__wrapped__`."""

    def __init__(self, failure: type[Exception]) -> None:
        self._failure, self._lock = failure, threading.Lock()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._calls = 0

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        deadline: float,
        label: str,
        *,
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """evalscope's `run_isolated`: the result, or what the function raised. Raises its error past the deadline."""
        with self._lock:
            if self._pipe is None or self._calls >= CALLS_OF_A_CHILD:
                self._start()
            assert self._pipe is not None
            self._calls += 1
            try:
                self._pipe.send((function.__module__, function.__name__, args, kwargs or {}))
                if not self._pipe.poll(deadline):
                    self.close()
                    raise self._failure(f"{label}: exceeded the {deadline}s mathematical scoring deadline")
                done, payload, issued = self._pipe.recv()
            except (EOFError, OSError) as error:
                self.close()
                raise self._failure(f"{label}: the scoring process ended without a result") from error
        for text, category in issued:
            warnings.warn(text, category, stacklevel=3)
        if not done:
            raise payload
        return payload

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, ours, self._failure), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe, self._calls = ours, 0

    def close(self) -> None:
        """End the child."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._pipe = None


def _serve(pipe: Connection, other_end: Connection, failure: type[Exception]) -> None:
    """The child: until the pipe is closed, which it also is when the harness ends."""
    other_end.close()
    logging.disable(logging.CRITICAL)
    while True:
        try:
            module, name, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        with warnings.catch_warnings(record=True) as caught:
            try:
                done, payload = True, getattr(sys.modules[module], name).__wrapped__(*args, **kwargs)
            except BaseException as error:
                done, payload = False, error
        issued = [(str(warning.message), warning.category) for warning in caught]
        try:
            pipe.send((done, payload, issued))
        except Exception as error:
            pipe.send((False, failure(f"Unpicklable scoring outcome: {type(error).__name__}: {error}"), issued))


@contextlib.contextmanager
def warm_child(parser: ModuleType) -> Iterator[None]:
    """evalscope's module of mathematics, `parser`, with one child for all its calls."""
    stock, child = parser.run_isolated, WarmChild(parser.MathEvaluationError)
    parser.run_isolated = child.run  # type: ignore[attr-defined]
    try:
        yield
    finally:
        parser.run_isolated = stock  # type: ignore[attr-defined]
        child.close()
