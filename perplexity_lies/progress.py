"""One progress bar for anything over two seconds: what is being done, items done of items asked, and an estimate.

Writes to stderr, and only to a terminal; elsewhere (a CI log, a notebook) a line when a step starts and when it ends.
Knows nothing of what is counted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
"""Called with the number of items just done."""


class Reporter:
    """Shows steps on a console; silent when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        # The stream is bound now: the evaluation libraries run with sys.stderr redirected.
        self._console = Console(stderr=True, quiet=quiet, file=None)
        self._console.file = self._console.file

    @contextlib.contextmanager
    def step(self, title: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
        """A step of `total` items, `done` of which were there already; yields the function that advances it."""
        if not self._console.is_terminal:
            yield from self._plain(title, total, done)
            return
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*(columns if total is not None else (*columns[:2], columns[4])), console=self._console) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda n: progress.advance(task, n)

    def _plain(self, title: str, total: int | None, done: int) -> Iterator[Advance]:
        started, count = time.monotonic(), done
        known = f" ({total} items{f', {done} already done' if done else ''})" if total is not None else ""
        self._console.print(f"{title}{known} ...", highlight=False)
        last = started

        def advance(n: int) -> None:
            nonlocal count, last
            count += n
            now = time.monotonic()
            if total and now - last > 10:
                left = (now - started) / max(1, count - done) * (total - count)
                self._console.print(f"  {count}/{total}, about {left:.0f} s left", highlight=False)
                last = now

        yield advance
        self._console.print(f"{title}: done in {time.monotonic() - started:.1f} s", highlight=False)

    def note(self, text: str) -> None:
        """One line that the user should see."""
        self._console.print(text, highlight=False, markup=False)
