"""Errors a user can mend: what was asked, what was found, what to type next.

Every error that bad input can cause is a `PliesError` with an exit code of its kind; a traceback is for our own bugs.
Knows nothing of terminals: `cli` prints `str(error)` and leaves with `error.exit_code`.

    PliesError
    ├── UsageError         2   an option, a suite file, a run directory that cannot be used as given
    ├── MissingError       3   a checkpoint, a dataset, a library, a tokenizer that is not there
    └── CheckpointError    3   files are there but are not a usable checkpoint
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_INCONCLUSIVE = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class PliesError(Exception):
    """One screen: `asked` (what the user wanted), `found` (what stood in the way), `mend` (what to type next)."""

    exit_code = EXIT_USAGE

    def __init__(self, asked: str, *, found: str | Iterable[str] = (), mend: str | Iterable[str] = ()) -> None:
        self.asked = asked
        self.found = (found,) if isinstance(found, str) else tuple(found)
        self.mend = (mend,) if isinstance(mend, str) else tuple(mend)
        super().__init__(asked)

    def __str__(self) -> str:
        lines = [self.asked]
        lines += [f"  {'found' if i == 0 else '':<5}: {text}" for i, text in enumerate(self.found)]
        lines += [f"  {'try' if i == 0 else '':<5}: {text}" for i, text in enumerate(self.mend)]
        return printable("\n".join(lines))


def printable(text: str) -> str:
    """Text for a terminal: control characters, which a stranger's file may hold, spelled out; line breaks and tabs kept."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else repr(c)[1:-1] for c in text)


class UsageError(PliesError):
    """What was typed or written in a file cannot be used (exit code 2)."""

    exit_code = EXIT_USAGE


class MissingError(PliesError):
    """Something that is needed is not there (exit code 3)."""

    exit_code = EXIT_MISSING


class CheckpointError(PliesError):
    """The files of a checkpoint are there but cannot be used (exit code 3)."""

    exit_code = EXIT_MISSING


def nearest(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"`, or an empty string when nothing in `known` is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def from_table(target: str, asked: str, extra: str) -> Any:
    """The attribute that a table names by `module:attribute`, imported now.

    Raises MissingError, naming the extra to install, when a library that it needs is absent; a fault inside an installed
    library, or in our own code, is let through.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if not library or find_spec(library) is not None:
            raise
        raise MissingError(
            asked, found=f"the library {library!r} is not installed", mend=f"pip install 'perplexity-lies[{extra}]'"
        ) from error
