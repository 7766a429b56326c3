"""The device that `--device` names, and how many CPU threads torch computes with."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from perplexity_lies.errors import MissingError, UsageError


def resolve_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises UsageError for other names, MissingError for an absent GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name!r} is not a device", found="auto, cpu, cuda, cuda:N", mend="--device auto")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            f"--device {name} was asked for", found="this torch sees no CUDA device", mend="--device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingError(
            f"--device {name} was asked for",
            found=f"CUDA devices 0 to {torch.cuda.device_count() - 1}",
            mend="--device cuda:0",
        )
    return device


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` CPU threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
