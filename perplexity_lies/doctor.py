"""The report of `plies doctor`: what this machine has, which packages are installed, what to type for what is missing.

Imports torch only where a CUDA driver answers, so that the report takes well under a second elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perplexity_lies.checkpoint.lookup import BUILTINS, resolve
from perplexity_lies.errors import EXIT_MISSING, MissingError, PliesError
from perplexity_lies.installed import DISTRIBUTION, Finding, State, packages
from perplexity_lies.sandbox import find_sandbox

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _python() -> Finding:
    supported = sys.version_info >= (3, 11)
    return Finding(
        group="machine",
        name="python",
        state=State.OK if supported else State.WRONG,
        found=f"{platform.python_version()}, {os.cpu_count()} cores",
        purpose="everything",
        mend="" if supported else "use Python 3.11 or newer",
        for_demo=True,
    )


def _cuda_devices() -> int:
    """Number of devices that the CUDA driver counts, 0 without a driver; torch is not asked, since its import takes seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _cuda() -> Finding:
    group, name, purpose = "machine", "CUDA", "large checkpoints; everything else runs on CPU"
    devices = _cuda_devices()
    if not devices:
        return Finding(group=group, name=name, state=State.ABSENT, found="no device", purpose=purpose)
    try:
        import torch
    except ImportError:
        found, mend = f"{devices} devices, no torch to use them", f'pip install "{DISTRIBUTION}[torch]"'
        return Finding(group=group, name=name, state=State.ABSENT, found=found, purpose=purpose, mend=mend)
    if not torch.cuda.is_available():
        found, mend = f"{devices} devices that torch {torch.__version__} does not see", "install torch's CUDA build"
        return Finding(group=group, name=name, state=State.WRONG, found=found, purpose=purpose, mend=mend)
    properties = torch.cuda.get_device_properties(0)
    found = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return Finding(group=group, name=name, state=State.OK, found=found, purpose=purpose)


def _browser() -> Finding:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    return Finding(
        group="machine",
        name="chromium",
        state=State.OK if path else State.ABSENT,
        found=path or "not found",
        purpose="pictures of a report (report.html itself needs none)",
        mend="" if path else "apt-get install chromium",
    )


def _data() -> Finding:
    name, purpose = "PLIES_DATA", "suites of published benchmarks without a network"
    directory = os.environ.get("PLIES_DATA", "")
    if directory and not Path(directory).is_dir():
        found, mend = f"{directory} is not a directory", "export PLIES_DATA=DIR, or --data DIR"
        return Finding(group="machine", name=name, state=State.WRONG, found=found, purpose=purpose, mend=mend)
    state = State.OK if directory else State.ABSENT
    mend = "" if directory else "export PLIES_DATA=DIR, or --data DIR"
    return Finding(group="machine", name=name, state=state, found=directory or "not set", purpose=purpose, mend=mend)


def _writable() -> Finding:
    try:
        with tempfile.TemporaryFile(dir="."):
            state, found, mend = State.OK, os.getcwd(), ""
    except OSError as error:
        state, found, mend = State.WRONG, f"{os.getcwd()}: {error.strerror}", "cd to a directory of your own"
    purpose = "run directories"
    return Finding(
        group="machine", name="this directory", state=state, found=found, purpose=purpose, mend=mend, for_demo=True
    )


def _sandbox() -> Finding:
    name, purpose = "sandbox", "--run-code: HumanEval"
    try:
        box = find_sandbox()
    except MissingError as error:
        found = "; ".join(error.found)
        return Finding(group="machine", name=name, state=State.ABSENT, found=found, purpose=purpose, mend=error.mend[0])
    found = f"{box.name}, tried out: no network, no files, no child processes"
    return Finding(group="machine", name=name, state=State.OK, found=found, purpose=purpose)


def _builtin(word: str) -> Finding:
    name, purpose = f"builtin:{word}", "plies demo"
    try:
        checkpoint = resolve(name)
    except PliesError as error:
        found, mend = error.asked, error.mend[0]
        return Finding(
            group="embedded", name=name, state=State.WRONG, found=found, purpose=purpose, mend=mend, for_demo=True
        )
    found = f"{checkpoint.parameters:,} parameters, {checkpoint.digest[:19]}"
    return Finding(group="embedded", name=name, state=State.OK, found=found, purpose=purpose, for_demo=True)


def exit_code(findings: Sequence[Finding]) -> int:
    """3 where something that `plies demo` needs is missing or wrong, else 0."""
    return EXIT_MISSING if any(f.for_demo and f.state is not State.OK for f in findings) else 0


def render(findings: Sequence[Finding]) -> RenderableType:
    """A table by group, then what to type for what is missing or wrong."""
    styles = {State.OK: "green", State.ABSENT: "yellow", State.WRONG: "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for column in ("", "", "state", "found", "for"):
        table.add_column(column, overflow="fold")
    for index, finding in enumerate(findings):
        first = index == 0 or findings[index - 1].group != finding.group
        state = Text(finding.state.value, style=styles[finding.state])
        group = Text(finding.group if first else "", style="bold")
        table.add_row(group, Text(finding.name), state, Text(finding.found), Text(finding.purpose, style="dim"))
    mends: dict[str, list[str]] = {}
    for finding in findings:
        if finding.mend:
            mends.setdefault(finding.mend, []).append(finding.name)
    lines = [Text(f"{', '.join(names)}:  {mend}") for mend, names in mends.items()]
    ready = exit_code(findings) == 0
    verdict = Text("plies demo can run." if ready else "plies demo cannot run here yet.", style="bold")
    return Group(table, Text(), *lines, *([Text()] if lines else []), verdict)


def report() -> list[Finding]:
    """Every finding, in the order of the report."""
    machine = [_python(), _cuda(), _browser(), _data(), _sandbox(), _writable()]
    return [*machine, *packages(), *(_builtin(word) for word in BUILTINS)]
