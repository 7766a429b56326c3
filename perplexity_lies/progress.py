"""One progress bar for anything over two seconds: what is being done, items done of items asked, and an estimate.

Writes to stderr, and only to a terminal; elsewhere (a CI log, a notebook) a line when a step starts and when it ends.
Knows nothing of what is counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]
"""Called with the number of items just done."""


def _own_stream(stream: TextIO | None) -> TextIO | None:
    """The process's stderr through a descriptor of our own, which `quarantine` does not turn to its log; None for others."""
    if not isinstance(stream, io.TextIOWrapper) or stream is not sys.__stderr__:
        return None
    return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)


class Reporter:
    """Shows steps on a console; silent when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._own = _own_stream(sys.stderr)
        self._console = Console(file=self._own or sys.stderr, quiet=quiet)

    def close(self) -> None:
        """Let go of the stream."""
        if self._own is not None:
            self._own.close()

    @contextlib.contextmanager
    def step(self, title: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
        """A step of `total` items, `done` of which were there already; yields the function that advances it."""
        if not self._console.is_terminal:
            yield from self._plain(title, total, done)
            return
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        shown = columns if total is not None else (*columns[:2], columns[4])
        # Not redirected: rich would put what the libraries print on the terminal, past the log.
        with Progress(*shown, console=self._console, redirect_stdout=False, redirect_stderr=False) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda n: progress.advance(task, n)

    def _plain(self, title: str, total: int | None, done: int) -> Iterator[Advance]:
        started, count = time.monotonic(), done
        known = f" ({total} items{f', {done} already done' if done else ''})" if total is not None else ""
        self.note(f"{title}{known} ...")
        last = started

        def advance(n: int) -> None:
            nonlocal count, last
            count += n
            now = time.monotonic()
            if total and now - last > 10:
                left = (now - started) / max(1, count - done) * (total - count)
                self.note(f"  {count}/{total}, about {left:.0f} s left")
                last = now

        yield advance
        self.note(f"{title}: done in {time.monotonic() - started:.1f} s")

    def note(self, text: str) -> None:
        """One line that the user should see."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
