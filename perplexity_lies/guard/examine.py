"""A checkpoint examined from the command line: load it, run the guard's full form, show what it measured.

Knows nothing of exit codes or of runs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import engine_of, open_engine
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.guard import Guarded, guard
from perplexity_lies.protocols.hygiene import quarantine

STATES = {True: Text("passed", style="green"), False: Text("FAILED", style="bold red"), None: Text("–", style="yellow")}


def examine(
    checkpoint: str,
    *,
    engine: str = "torch",
    tokenizer: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Guarded:
    """The guard's full form on `checkpoint`. Raises what resolving and loading it raise."""
    named = resolve(checkpoint, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, tokenizer=tokenizer)
    options = EngineOptions(device=device, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="plies-guard-") as scratch, quarantine(Path(scratch) / "loading.log"):
        return guard(open_engine(engine_of(engine, named), named, options), full=True)


def render(found: Guarded) -> RenderableType:
    """A table of checks with what each measured and its bar, and one sentence."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "measured", "bar", "what was done"):
        table.add_column(column, overflow="fold", justify="right" if column in ("measured", "bar") else "left")
    for check in found.checks:
        numbers = ("" if value is None else f"{value:.2g}" for value in (check.measured, check.tolerance))
        table.add_row(Text(check.name), STATES[check.passed], *numbers, Text(check.detail, style="dim"))
    if found.failed:
        named = ", ".join(check.name for check in found.failed)
        said = Text(
            f"The guard failed ({named}): a gap of this checkpoint may be the engine's doing.", style="bold red"
        )
    else:
        left = sum(check.passed is None for check in found.checks)
        said = Text(f"The guard passed{f'; {left} checks could not be made' if left else ''}.", style="bold")
    return Group(table, Text(), said)
