"""What is installed, what works, and what to install for what.

Versions are read from the installed packages' metadata and held against the ranges of our own, so that pyproject.toml
stays the one place that names them. Nothing heavy is imported: torch only where a CUDA driver answers.
Knows nothing of commands: `cli` prints `render(report())` and leaves with `exit_code`; whatever needs an extra calls
`require` first.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perplexity_lies.checkpoint.lookup import BUILTINS, resolve
from perplexity_lies.errors import EXIT_MISSING, MissingError, PliesError

DISTRIBUTION = "perplexity-lies"

PURPOSES = {
    "numpy": "every number of a comparison",
    "pandas": "data frames of gaps and items",
    "plotly": "the figures of report.html",
    "jinja2": "report.html",
    "rich": "tables and progress bars",
    "typer": "the plies command",
    "pyyaml": "suite files",
    "packaging": "this report",
    "torch": "loading a checkpoint, scoring and generating",
    "transformers": "model classes and tokenizers",
    "tokenizers": "tokenizers",
    "safetensors": "weights",
    "huggingface_hub": "checkpoints named ORG/NAME",
    "httpx": "checkpoints behind an address",
    "lm-eval": "the log-likelihood protocol",
    "evalscope": "the generation protocol",
    "datasets": "benchmark items",
    "flash-linear-attention": "CUDA kernels for linear attention",
    "triton": "CUDA kernels for linear attention",
    "vllm": "--engine vllm, in an environment of its own",
}
"""Distribution -> what it is for. Which extra brings it, and in which range, stands in our own metadata."""

EXTRAS = ("", "torch", "eval", "fla", "vllm")
"""In the order of the report; the empty one is what every installation has."""
INCLUDES = {"eval": ("torch", "eval"), "fla": ("torch", "fla")}
"""Extras that bring others."""
DEMO_EXTRAS = frozenset({"", "torch", "eval"})
"""Without these `plies demo` cannot run."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class State(enum.StrEnum):
    """Of one finding."""

    OK = "ok"
    ABSENT = "absent"
    """Not there, and only needed for what `purpose` says."""
    WRONG = "wrong"
    """There, but not as it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    state: State
    found: str
    """A version, a place, or what is the matter."""
    purpose: str
    mend: str = ""
    """What to type; empty where nothing is the matter."""
    for_demo: bool = False
    """Whether `plies demo` needs it."""


def _required() -> Iterator[tuple[str, Requirement]]:
    """(extra, requirement) of our own metadata, for extras of the report."""
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        for extra in EXTRAS:
            holds = requirement.marker is None if not extra else _brought_by(requirement, extra)
            if holds and requirement.name in PURPOSES:
                yield extra, requirement


def _brought_by(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _package(extra: str, requirement: Requirement) -> Finding:
    group, for_demo = extra or "base", extra in DEMO_EXTRAS
    install = f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {DISTRIBUTION}"
    asked = str(requirement.specifier)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        state, found = State.ABSENT, f"not installed, wants {asked}"
    else:
        fits = requirement.specifier.contains(version, prereleases=True)
        state, found, install = (State.OK, version, "") if fits else (State.WRONG, f"{version}, wants {asked}", install)
    purpose = PURPOSES[requirement.name]
    return Finding(
        group=group, name=requirement.name, state=state, found=found, purpose=purpose, mend=install, for_demo=for_demo
    )


def _packages() -> list[Finding]:
    try:
        required = sorted(_required(), key=lambda pair: EXTRAS.index(pair[0]))
    except importlib.metadata.PackageNotFoundError:
        purpose = "knowing which versions were tested"
        found, mend = "runs from its sources, not installed", "pip install -e ."
        return [Finding(group="base", name=DISTRIBUTION, state=State.WRONG, found=found, purpose=purpose, mend=mend)]
    return [_package(extra, requirement) for extra, requirement in required]


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
    """How many the driver itself counts; 0 where there is no driver. Importing torch to learn this takes seconds."""
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
    """3 where something that `plies demo` needs is not there or not as it should be, else 0."""
    return EXIT_MISSING if any(f.for_demo and f.state is not State.OK for f in findings) else 0


def require(asked: str, extra: str) -> None:
    """Raises MissingError, with what to type, where a package that `extra` brings is not installed."""
    groups = INCLUDES.get(extra, (extra,))
    absent = [f for f in _packages() if f.group in groups and f.state is State.ABSENT]
    if absent:
        raise MissingError(
            asked,
            found=f"not installed: {', '.join(finding.name for finding in absent)}",
            mend=(f'pip install "{DISTRIBUTION}[{extra}]"', "plies doctor shows what is installed"),
        )


def render(findings: Sequence[Finding]) -> RenderableType:
    """A table by group, then what to type for what is not there."""
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
    """Every finding, in the order of the report. Takes well under a second where there is no CUDA device."""
    machine = [_python(), _cuda(), _browser(), _data(), _writable()]
    return [*machine, *_packages(), *(_builtin(word) for word in BUILTINS)]
