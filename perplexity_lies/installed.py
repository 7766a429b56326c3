"""Which packages are installed, in which version, and what to type for one that is not.

    versions()                          {"python": "3.11.9", "perplexity-lies": "0.1.0", "torch": "2.13.0", ...}
    require("plies evaluate", "eval")   MissingError: not installed: lm-eval; pip install "perplexity-lies[eval]"

Reads the metadata of installed packages and imports none of them. The version ranges stand in pyproject.toml alone.
"""

from __future__ import annotations

import enum
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from perplexity_lies.errors import MissingError

DISTRIBUTION = "perplexity-lies"

PURPOSES = {
    "annotated-types": "bounds of values in suites and recipes",
    "jinja2": "report.html",
    "numpy": "every number of a comparison",
    "packaging": "this report",
    "pandas": "data frames of gaps and items",
    "plotly": "the figures of report.html",
    "pydantic": "checking suites, recipes and runs when they are read",
    "pyyaml": "suite files",
    "rich": "tables and progress bars",
    "typer": "the plies command",
    "filelock": "token caches that several processes share (distill)",
    "httpx": "checkpoints behind an address",
    "huggingface_hub": "checkpoints named ORG/NAME",
    "safetensors": "weights",
    "scipy": "intervals of effects (distill)",
    "tenacity": "checkpoints behind an address",
    "tokenizers": "tokenizers",
    "torch": "loading a checkpoint, scoring and generating",
    "transformers": "model classes and tokenizers",
    "datasets": "benchmark items",
    "evalscope": "generation",
    "lm-eval": "log-likelihoods",
    "flash-linear-attention": "CUDA kernels for linear attention",
    "triton": "CUDA kernels for linear attention",
    "vllm": "--engine vllm, in an environment of its own",
}
"""Package -> what it is for. Our own metadata says which extra brings it, and in which range."""

EXTRAS = ("", "torch", "eval", "fla", "vllm")
"""In the order of the report; the empty one is what every installation has."""
INCLUDES = {"eval": ("torch", "eval"), "fla": ("torch", "fla")}
"""Extras that bring others."""
DEMO_EXTRAS = frozenset({"", "torch", "eval"})
"""Without these `plies demo` cannot run."""

VERSIONED = (
    DISTRIBUTION, "torch", "transformers", "tokenizers", "lm-eval", "evalscope", "datasets", "vllm",
    "flash-linear-attention", "triton",
)  # fmt: skip
"""Packages that compute: another version may give other numbers."""


class State(enum.StrEnum):
    """State of one finding."""

    OK = "ok"
    ABSENT = "absent"
    """Not there, and only needed for what `purpose` says."""
    WRONG = "wrong"
    """There, but not as it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `plies doctor`."""

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
    """(extra, requirement) pairs of our own metadata, for the extras and packages of the report."""
    for text in metadata.requires(DISTRIBUTION) or []:
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
    install = f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {DISTRIBUTION}"
    wanted = str(requirement.specifier)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        state, found = State.ABSENT, f"not installed, wants {wanted}"
    else:
        fits = requirement.specifier.contains(version, prereleases=True)
        state, found = (State.OK, version) if fits else (State.WRONG, f"{version}, wants {wanted}")
    return Finding(
        group=extra or "base",
        name=requirement.name,
        state=state,
        found=found,
        purpose=PURPOSES[requirement.name],
        mend="" if state is State.OK else install,
        for_demo=extra in DEMO_EXTRAS,
    )


def packages() -> list[Finding]:
    """One finding per package that our metadata names, in the order of `EXTRAS`; one alone where we are not installed."""
    try:
        required = sorted(_required(), key=lambda pair: EXTRAS.index(pair[0]))
    except metadata.PackageNotFoundError:
        purpose = "knowing which versions were tested"
        found, mend = "runs from its sources, not installed", "pip install -e ."
        return [Finding(group="base", name=DISTRIBUTION, state=State.WRONG, found=found, purpose=purpose, mend=mend)]
    return [_package(extra, requirement) for extra, requirement in required]


def require(asked: str, extra: str) -> None:
    """Raises MissingError, led by `asked`, where a package that `extra` brings is not installed."""
    groups = INCLUDES.get(extra, (extra,))
    absent = [finding.name for finding in packages() if finding.group in groups and finding.state is State.ABSENT]
    if absent:
        raise MissingError(
            asked,
            found=f"not installed: {', '.join(absent)}",
            mend=(f'pip install "{DISTRIBUTION}[{extra}]"', "plies doctor shows what is installed"),
        )


def versions() -> dict[str, str]:
    """Version of Python and of each package of `VERSIONED` that is installed.

    Absent ones are left out, so that a package added to the list later changes no key of a run made without it.
    """
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
