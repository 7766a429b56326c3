"""The guard from the command line (`plies doctor CHECKPOINT`): load a checkpoint, run every check, print a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import engine_of, open_engine
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.engines.template import template_args
from perplexity_lies.guard import Guarded, guard
from perplexity_lies.options import RunOptions

STATES = {True: Text("passed", style="green"), False: Text("FAILED", style="bold red"), None: Text("–", style="yellow")}


def examine(checkpoint: str, options: RunOptions) -> Guarded:
    """Load `checkpoint` and run the guard's full form on it, with the chat-template arguments and the judgement of a run.

    Raises UsageError for arguments that are not JSON, and what resolving and loading raise.
    """
    given = template_args(options.chat_template_args, "--chat-template-args")
    named = resolve(
        checkpoint,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        tokenizer=options.tokenizer,
    )
    loading = EngineOptions(device=options.device, dtype=options.dtype, chat_template_args=given)
    return guard(open_engine(engine_of(options.engine, named), named, loading), full=True, beginnings_told=True)


def render(found: Guarded) -> RenderableType:
    """A table of the checks, what each measured and its tolerance, and one sentence."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "measured", "tolerance", "what was done"):
        table.add_column(column, overflow="fold", justify="right" if column in ("measured", "tolerance") else "left")
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
    beyond = [Text(f"Not looked at: {sentence}.", style="dim") for sentence in found.not_looked_at]
    return Group(table, Text(), *beyond, Text(), said)
