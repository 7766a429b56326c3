"""What a run can be told, once: `RunOptions`, and the command-line options that fill it.

    @app.command()
    @with_options(RunOptions, "device", "dtype")
    def doctor(checkpoint: str, options: RunOptions) -> None: ...

Python callers give the same names as keywords: `plies.evaluate("./student", suite="smoke", limit=50)`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.rungs import RUNGS

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

MOST_OPTIONS = 8
"""Options of a command, beside its arguments, without a reason in `MANY_OPTIONS`."""

MANY_OPTIONS = {
    "compare": "a run's options: each says what is measured, with what, or where it is kept, and none belongs in a suite",
    "evaluate": "as `compare`, for one checkpoint",
    "distill run": "nine: `--teacher T` could be `--set teacher=T`, but is how most runs begin",
}
"""Command -> why it has more options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How checkpoints are run. Everything else is in the suite."""

    data: Annotated[
        Path | None, typer.Option("--data", envvar="PLIES_DATA", help="Offline mirror of datasets in hub layout.")
    ] = None
    out: Annotated[Path, typer.Option("--out", help="Where runs, comparison and report go.")] = Path("plies-out")
    limit: Annotated[int | None, typer.Option("--limit", help="First items of each task only; the report says so.")] = (
        None
    )
    tasks: Annotated[str | None, typer.Option("--tasks", help="These tasks of the suite only, commas between.")] = None
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds in place of the suite's: 1,2,3.")] = None
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likeliest token each time, whatever the suite samples with.")
    ] = False
    rungs: Annotated[
        str | None,
        typer.Option(
            "--rungs", "--protocol", help=f"Ways to ask, commas between: {', '.join(RUNGS)}. All when left out."
        ),
    ] = None
    ladder: Annotated[
        bool, typer.Option("--ladder", help="The same items in steps of one factor each, from ranking to chat.")
    ] = False
    engine: Annotated[
        str, typer.Option("--engine", help="What runs the files: torch, vllm. An address is the endpoint engine's.")
    ] = "torch"
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Of what an address serves: directory or hub id. Files bring their own."),
    ] = None
    chat_template_args: Annotated[
        str | None,
        typer.Option("--chat-template-args", help="JSON for the chat template: '{\"enable_thinking\": false}'."),
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")] = "auto"
    dtype: Annotated[Dtype, typer.Option("--dtype", help="auto is float32 on CPU, as stored on CUDA.")] = "auto"
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Load weights that are not safetensors.")] = False
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python that comes with the checkpoint.")
    ] = False
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run code that checkpoints write (HumanEval), in a sandbox.")
    ] = False
    quiet: bool = False
    """No progress on stderr. From Python only."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(
                f"--limit {self.limit} asks for no items",
                found="a limit is a number of items of each task",
                mend="--limit 50",
            )
        for rung in self.rungs.split(",") if self.rungs is not None else ():
            if rung not in RUNGS:
                raise UsageError(
                    f"there is no rung {rung!r}{nearest(rung, RUNGS)}",
                    found=f"rungs: {', '.join(RUNGS)}",
                    mend="leave --rungs out for all",
                )

    @property
    def wanted_rungs(self) -> tuple[str, ...]:
        """The rungs to ask, in the order of the table."""
        named = RUNGS if self.rungs is None else self.rungs.split(",")
        return tuple(rung for rung in RUNGS if rung in named)


ENGINE_OPTIONS = ("engine", "tokenizer", "device", "dtype", "allow_pickle", "trust_remote_code")
"""Fields of `RunOptions` that say how a checkpoint is loaded."""
RUN_OPTIONS = (
    "data", "out", "limit", "tasks", "seeds", "greedy", "rungs", "ladder", "chat_template_args", "run_code", *ENGINE_OPTIONS,
)  # fmt: skip

Command = TypeVar("Command", bound=Callable[..., Any])


def with_options(kind: type[Any], *names: str) -> Callable[[Command], Command]:
    """Give a command whose parameter `options` is a `kind` the command-line options of these fields in its place."""

    def decorate(command: Command) -> Command:
        hints = typing.get_type_hints(kind, include_extras=True)
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        own = typing.get_type_hints(command, include_extras=True)
        parameters = [
            parameter.replace(annotation=own[parameter.name])
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "options"
        ]
        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(name, keyword, default=defaults[name], annotation=hints[name]) for name in names]

        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            return command(options=kind(**{name: given.pop(name) for name in names}), **given)

        wrapped.__signature__ = inspect.Signature([*parameters, *added])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*parameters, *added)}
        return typing.cast(Command, wrapped)

    return decorate
