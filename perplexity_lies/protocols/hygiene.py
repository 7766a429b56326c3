"""`quarantine`: runs the evaluation libraries and puts back what they change in the process.

lm-eval sets environment variables and seeds every random generator. evalscope replaces the root logger's handlers at import
and seeds too. Both print, and both would ask a hub. Inside `quarantine` they print to a log file, stay offline, and have a
datasets cache of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_EVALUATE_OFFLINE": "1",
}
"""What keeps the Hugging Face libraries from asking anything of a hub."""

_OFFLINE_SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
"""(module, attribute) in which those libraries keep the switch once they are imported."""

_CACHE_SWITCH = ("datasets.config", "HF_DATASETS_CACHE")


@contextlib.contextmanager
def quarantine(log: Path) -> Iterator[None]:
    """Run foreign code; what it prints and logs goes to `log`, what it changes in the process comes back as it was.

    The datasets cache is a fresh temporary directory: its key leaves out path and content, so a shared one can serve
    another dataset's rows.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("a", encoding="utf-8"))
        cache = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="plies-datasets-", ignore_cleanup_errors=True))
        )
        stack.enter_context(_environment())
        stack.enter_context(_logging())
        stack.enter_context(_random_states())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(_switches(cache))
        stack.enter_context(_descriptors(file))
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        _send_logs_to(logging.StreamHandler(file))
        yield


@contextlib.contextmanager
def _descriptors(log: TextIO) -> Iterator[None]:
    """Send descriptors 1 and 2 to `log`: lm-eval's call of `git` and compiled code write past sys.stdout and sys.stderr."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        stream.flush()
    kept = {fd: os.dup(fd) for fd in (1, 2)}
    for fd in kept:
        os.dup2(log.fileno(), fd)
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        for fd, copy in kept.items():
            os.dup2(copy, fd)
            os.close(copy)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(OFFLINE)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Put every logger back as it was. Loggers made inside lose their handlers, whose file is about to close."""
    root = logging.getLogger()
    known = {name: logger for name, logger in root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    before = {logger: _state(logger) for logger in (root, *known.values())}
    disabled = root.manager.disable
    try:
        yield
    finally:
        logging.disable(disabled)
        for logger, (level, handlers, propagate, off) in before.items():
            logger.setLevel(level)
            _close(set(logger.handlers) - set(handlers))
            logger.handlers[:] = handlers
            logger.propagate, logger.disabled = propagate, off
        for name, born in root.manager.loggerDict.items():
            if name not in known and isinstance(born, logging.Logger):
                _close(born.handlers)
                born.handlers.clear()


def _close(handlers: Iterable[logging.Handler]) -> None:
    """Close handlers: evalscope keeps a file open in a directory that no longer exists."""
    for handler in list(handlers):
        handler.close()


def _send_logs_to(handler: logging.Handler) -> None:
    """Send every logger through the root, and the root to `handler` alone; transformers' own logger writes to the terminal."""
    root = logging.getLogger()
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    root.handlers[:] = [handler]


def _state(logger: logging.Logger) -> tuple[int, list[logging.Handler], bool, bool]:
    return logger.level, list(logger.handlers), logger.propagate, logger.disabled


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    import numpy
    import torch

    python, array, tensor = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(tensor)


@contextlib.contextmanager
def _switches(cache: Path) -> Iterator[None]:
    """Turn on the offline switches, which modules imported earlier hold in attributes, and set the cache folder."""
    import datasets.config  # noqa: F401
    import huggingface_hub.constants  # noqa: F401

    wanted: list[tuple[str, str, Any]] = [(module, name, True) for module, name in _OFFLINE_SWITCHES]
    wanted.append((*_CACHE_SWITCH, cache))
    before = [
        (sys.modules[module], name, getattr(sys.modules[module], name))
        for module, name, _ in wanted
        if hasattr(sys.modules[module], name)
    ]
    for module, name, value in wanted:
        if hasattr(sys.modules[module], name):
            setattr(sys.modules[module], name, value)
    try:
        yield
    finally:
        for loaded, name, value in before:
            setattr(loaded, name, value)
