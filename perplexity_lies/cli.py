"""The commands: a thin skin over the front door.

Nothing heavy is imported until a command runs. A `PliesError` is printed as it is and leaves with its own exit code;
a traceback is for our own bugs. Knows nothing of what the commands do.
"""

from __future__ import annotations

import io
import sys
import tempfile
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perplexity_lies.errors import (
    EXIT_BUG,
    EXIT_GATE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    PliesError,
    UsageError,
    from_table,
    printable,
)
from perplexity_lies.record.store import run_key

if TYPE_CHECKING:
    from perplexity_lies.read.comparison import Comparison

GUESTS = {
    "html": "reports.html:write",
    "terminal": "reports.terminal:render",
    "distill": "distill.cli:app",
}
"""What the harness reaches by name only."""

app = typer.Typer(
    name="plies",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="What do a checkpoint's log-likelihood scores hide? Asks the same items by ranking and by generation.",
    epilog="Begin with: plies demo",
)


class Dtype(StrEnum):
    """`--dtype`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


CHECKPOINT = "Directory, hub id\\[@revision], builtin:teacher, or http://HOST:PORT/v1#MODEL."
SuiteOption = Annotated[str, typer.Option("--suite", help="Name (see `plies suites`) or YAML file.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PLIES_DATA", help="Offline mirror of datasets in hub layout.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Where runs, comparison and report go.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="First items of each task only; the report says so.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="What runs the files: torch, vllm. An address is the endpoint engine's.")
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Of what an address serves: directory or hub id. Files bring their own."),
]
ProtocolOption = Annotated[
    str | None, typer.Option("--protocol", help="loglikelihood or generation alone; both when left out.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="auto is float32 on CPU, as stored on CUDA.")]
PickleOption = Annotated[bool, typer.Option("--allow-pickle", help="Load weights that are not safetensors.")]
RemoteOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that comes with the checkpoint.")]


@app.command(epilog="plies compare Qwen/Qwen3-0.6B ./student --suite smoke --data ./hub --limit 200")
def compare(
    teacher: Annotated[str, typer.Argument(help=CHECKPOINT)],
    student: Annotated[str, typer.Argument(help="The same, of the student.")],
    suite: SuiteOption,
    data: DataOption = None,
    out: OutOption = Path("plies-out"),
    limit: LimitOption = None,
    engine: EngineOption = "torch",
    tokenizer: TokenizerOption = None,
    protocol: ProtocolOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    allow_pickle: PickleOption = False,
    trust_remote_code: RemoteOption = False,
) -> None:
    """Measure TEACHER and STUDENT under both protocols and report the gap."""
    from perplexity_lies.api import compare as run_both

    found = run_both(
        teacher, student, suite=suite, data=data, out=out, limit=limit, engine=engine, tokenizer=tokenizer, protocol=protocol,
        device=device, dtype=dtype.value, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    _show(found, _folder(out, found))


@app.command(epilog="plies evaluate http://localhost:8000/v1#MODEL --tokenizer ORG/NAME --suite smoke --data ./hub")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    suite: SuiteOption,
    data: DataOption = None,
    out: OutOption = Path("plies-out"),
    limit: LimitOption = None,
    engine: EngineOption = "torch",
    tokenizer: TokenizerOption = None,
    protocol: ProtocolOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    allow_pickle: PickleOption = False,
    trust_remote_code: RemoteOption = False,
) -> None:
    """Measure one CHECKPOINT under both protocols into a run directory."""
    from perplexity_lies.run import evaluate as run_one

    run = run_one(
        checkpoint, suite=suite, data=data, out=out, limit=limit, engine=engine, tokenizer=tokenizer, protocol=protocol,
        device=device, dtype=dtype.value, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    typer.echo(run.path)


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="A comparison.json, or the run directories TEACHER STUDENT.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for comparison.json and report.html.")] = None,
) -> None:
    """Make table and HTML report again, from a comparison or from two runs; needs neither torch nor the checkpoints."""
    from perplexity_lies.read.compare import compare_runs
    from perplexity_lies.read.comparison import load_comparison

    if len(paths) == 1:
        file = paths[0] / "comparison.json" if paths[0].is_dir() else paths[0]
        _show(load_comparison(file), out or file.parent)
    elif len(paths) == 2:
        found = compare_runs(*paths)
        _show(found, out or _folder(Path("plies-out"), found))
    else:
        raise UsageError(
            f"plies report takes one comparison or two runs, {len(paths)} paths were given",
            mend=["plies report OUT/comparison.json", "plies report RUN_OF_TEACHER RUN_OF_STUDENT"],
        )


@app.command()
def gate(
    comparison: Annotated[Path, typer.Argument(help="A comparison.json.")],
    margin: Annotated[float, typer.Option("--margin", help="Largest generation loss allowed, in percentage points.")],
) -> None:
    """Exit 0 when the student's generation gap is surely within the margin, 1 when surely not, 4 when nobody can say."""
    from perplexity_lies.read.comparison import load_comparison
    from perplexity_lies.read.gate import decide

    verdict = decide(load_comparison(comparison), margin)
    typer.echo(printable(f"{verdict.outcome}: {verdict.reason}"))
    raise typer.Exit(verdict.exit_code)


@app.command()
def suites(
    name: Annotated[str | None, typer.Argument(help="One suite, in full.")] = None, data: DataOption = None
) -> None:
    """List the suites, or show one: its tasks, protocol settings, and datasets."""
    from perplexity_lies.catalogue.mirror import open_mirror
    from perplexity_lies.catalogue.suite import catalogue, load_suite

    if name is None:
        for known in catalogue():
            suite = load_suite(known)
            typer.echo(f"{known:<12} {suite.title}: {', '.join(task.name for task in suite.tasks)}")
        return
    suite = load_suite(name)
    typer.echo(suite.path.read_text(encoding="utf-8"))
    mirror = open_mirror(data)
    for dataset in suite.datasets:
        try:
            typer.echo(f"# {dataset}: {mirror.folder(dataset)}")
        except PliesError as error:
            typer.echo(f"# {dataset}: {'; '.join(error.mend)}")


@app.command()
def demo(out: OutOption = Path("plies-out"), limit: LimitOption = None) -> None:
    """Compare the embedded teacher with its distilled student, here and now, with no network."""
    from perplexity_lies.api import compare as run_both

    found = run_both("builtin:teacher", "builtin:student", suite="miniature", out=out, limit=limit)
    _show(found, _folder(out, found))


@app.command(epilog="plies doctor ./student")
def doctor(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Ask the engine that loads this one whether its numbers can be believed.")
    ] = None,
    engine: EngineOption = "torch",
    tokenizer: TokenizerOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    allow_pickle: PickleOption = False,
    trust_remote_code: RemoteOption = False,
) -> None:
    """What is installed and what works; of a CHECKPOINT, what the artifact guard measures (exit code 1 when a check fails)."""
    from rich.console import Console

    if checkpoint is None:
        from perplexity_lies.doctor import exit_code, render
        from perplexity_lies.doctor import report as findings

        installed = findings()
        Console().print(render(installed))
        raise typer.Exit(exit_code(installed))

    from perplexity_lies.guard.examine import examine
    from perplexity_lies.guard.examine import render as render_guard
    from perplexity_lies.protocols.hygiene import quarantine

    with tempfile.TemporaryDirectory(prefix="plies-guard-") as scratch, quarantine(Path(scratch) / "loading.log"):
        measured = examine(
            checkpoint, engine=engine, tokenizer=tokenizer, device=device, dtype=dtype.value, allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    Console().print(render_guard(measured))
    raise typer.Exit(EXIT_GATE_FAILED if measured.failed else 0)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def distill(context: typer.Context) -> None:
    """Make students: stages, layer selection, recipes (plies distill --help)."""
    from perplexity_lies.in_the_loop import measurer

    guest = from_table(GUESTS["distill"], "plies distill cannot run", "torch")
    guest(args=context.args, prog_name="plies distill", standalone_mode=False, obj=measurer)


def _folder(out: Path, comparison: Comparison) -> Path:
    """Where a comparison's files go: one folder under `out` for each pair, suite and limit."""
    pair = "-vs-".join(_word(name) for name in (comparison.teacher_name, comparison.student_name))
    both = [comparison.provenance[side] for side in ("teacher", "student")]
    key = run_key({"runs": [[run["checkpoint"]["digest"], run["suite"], run["settings"]] for run in both]})
    return out / f"{_word(comparison.suite_name)}-{pair}-{key[:6]}"


def _word(checkpoint: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in Path(checkpoint).name).strip("-.") or "checkpoint"


def _show(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json and report.html, print the table and where they are."""
    from rich.console import Console

    console = Console()
    write = from_table(GUESTS["html"], "the HTML report cannot be written", "all")
    render = from_table(GUESTS["terminal"], "the table cannot be shown", "all")
    try:
        comparison.write(folder / "comparison.json")
        write(comparison, folder / "report.html")
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written", found=str(error), mend="--out DIR with a directory of yours"
        ) from error
    console.print(render(comparison))
    for name in ("comparison.json", "report.html"):
        console.print(str(folder / name), soft_wrap=True, markup=False, highlight=False)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is no reason to stop
            stream.reconfigure(errors="replace")
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(args=args, prog_name="plies", standalone_mode=False)
    except PliesError as error:
        print(f"plies: {error}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("plies: interrupted; the same command continues where it stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        if hasattr(error, "show"):  # click's own usage errors
            error.show()
            code = getattr(error, "exit_code", EXIT_USAGE)
        else:
            traceback.print_exc()
            code = EXIT_BUG
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
