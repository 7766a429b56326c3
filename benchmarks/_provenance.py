"""What a benchmark's JSON says of where it ran: hardware, versions, commit, date. Imported by the scripts beside it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def provenance() -> dict[str, Any]:
    """Hardware, versions and commit of this very run."""
    return {
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu()},
        "versions": {
            "python": platform.python_version(),
            **{n: _version(n) for n in ("torch", "transformers", "lm-eval", "evalscope")},
        },
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = open("/proc/cpuinfo", encoding="utf-8").read().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return said.stdout.strip() or "unknown"
