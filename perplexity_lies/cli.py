"""The commands: a thin skin over the front door.

Nothing heavy is imported until a command runs. A `PliesError` is printed as it is and leaves with its own exit code;
a traceback is for our own bugs.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perplexity_lies.digests import short_key
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
from perplexity_lies.options import ENGINE_OPTIONS, RUN_OPTIONS, RunOptions, with_options
from perplexity_lies.rungs import RUNGS

if TYPE_CHECKING:
    from perplexity_lies.catalogue.tasks import Suite
    from perplexity_lies.read.comparison import Comparison

GUESTS = {
    "html": "reports.html:write",
    "terminal": "reports.terminal:render",
    "distill": "distill.cli:app",
}
"""What the harness reaches by name only."""

SPELLED_OUT = "plies-spelled-out"
"""Our error handler for consoles, as Python's codecs know it."""

IN_ASCII = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2192": ">", "\u2026": "...", "\u00d7": "x", "\u00b1": "+-",
    "\u2264": "<=", "\u2265": ">=", "\u00b7": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " ",
}  # fmt: skip
"""Signs of our own sentences for a console that lacks them."""

app = typer.Typer(
    name="plies",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="What do a checkpoint's log-likelihood scores hide? Asks the same items by ranking and by generation.",
    epilog="Begin with: plies demo",
)


data_app = typer.Typer(no_args_is_help=True, help="Datasets of a suite: fetch them into a mirror, check what is there.")
app.add_typer(data_app, name="data")

SuiteArgument = Annotated[str, typer.Argument(help="Name (see `plies suites`) or YAML file.")]
FolderArgument = Annotated[Path, typer.Argument(help="The mirror: DIR/org/name.", metavar="DIR")]
CHECKPOINT = "Directory, hub id\\[@revision], builtin:teacher, or http://HOST:PORT/v1#MODEL."
SuiteOption = Annotated[str, typer.Option("--suite", help="Name (see `plies suites`) or YAML file.")]
AcceptGuard = Annotated[
    bool,
    typer.Option("--accept-guard", help="Exit with 0 although the artifact guard failed; the report still says so."),
]


@app.command("compare", epilog="plies compare Qwen/Qwen3-0.6B ./student --suite smoke --data ./hub --limit 200")
@with_options(RunOptions, *RUN_OPTIONS)
def compare_command(
    teacher: Annotated[str, typer.Argument(help=CHECKPOINT)],
    students: Annotated[list[str], typer.Argument(help="One or more, likewise.", metavar="STUDENT...")],
    suite: SuiteOption,
    options: RunOptions,
    accept_guard: AcceptGuard = False,
) -> None:
    """Measure TEACHER and each STUDENT on every rung and report the gaps."""
    from perplexity_lies.api import compare as run_all

    found = run_all(teacher, *students, suite=suite, **_fields(options))
    _show(found, _folder(options.out, found))
    _leave_by_guard([f"{failure.side}: {failure.check}" for failure in found.guard_failures], accept_guard)


@app.command(
    "evaluate", epilog="plies evaluate http://localhost:8000/v1#MODEL --tokenizer ORG/NAME --suite smoke --data ./hub"
)
@with_options(RunOptions, *RUN_OPTIONS)
def evaluate_command(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    suite: SuiteOption,
    options: RunOptions,
    accept_guard: AcceptGuard = False,
) -> None:
    """Measure one CHECKPOINT on every rung into a run directory."""
    from perplexity_lies.run import evaluate as run_one

    run = run_one(checkpoint, suite=suite, **_fields(options))
    typer.echo(run.path)
    _leave_by_guard([name for name, check in run.manifest.guard.items() if check.passed is False], accept_guard)


@app.command("report", epilog="plies report RUN_OF_TEACHER RUN_OF_STUDENT RUN_OF_ANOTHER")
def report_command(
    paths: Annotated[list[Path], typer.Argument(help="A comparison.json, or run directories: TEACHER STUDENT...")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for comparison.json and report.html.")] = None,
) -> None:
    """Make table and HTML report again, from a comparison or from runs; needs neither torch nor the checkpoints."""
    from perplexity_lies.read.compare import compare_runs
    from perplexity_lies.read.comparison import load_comparison

    if len(paths) > 1:
        found = compare_runs(*paths)
        _show(found, out or _folder(Path("plies-out"), found))
    else:
        file = paths[0] / "comparison.json" if paths[0].is_dir() else paths[0]
        _show(load_comparison(file), out or file.parent)


@app.command("reread", epilog="plies reread plies-out/runs/smoke-student-... --extractor strict")
def reread_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    extractor: Annotated[str, typer.Option("--extractor", help="NAME, or NAME=ARGUMENT (see docs/extending.md).")],
    headline: Annotated[
        bool, typer.Option("--headline", help="Let its scores enter the gaps; otherwise they stand beside them.")
    ] = False,
) -> None:
    """Read the stored replies again with another extractor; needs neither torch nor the checkpoint."""
    from perplexity_lies.reread import reread as read_again

    for run in runs:
        for line in read_again(run, extractor, headline=headline):
            typer.echo(printable(str(line)))
    typer.echo("plies report RUN RUN shows both readings side by side")


@app.command(
    "gate", epilog="plies gate plies-out/runs/smoke-new-... --baseline plies-out/runs/smoke-old-... --policy gate.yaml"
)
def gate_command(
    judged: Annotated[Path, typer.Argument(help="A comparison.json; with --baseline a run.", metavar="COMPARISON|RUN")],
    margin: Annotated[
        float | None, typer.Option("--margin", help="Largest generation loss allowed, in percentage points.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Rules in YAML: margins by task, group, rung; shares of replies.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="The run that RUN must not fall behind.")] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML, which Jenkins and GitLab show.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", help="Append Markdown, as to $GITHUB_STEP_SUMMARY.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the verdicts as JSON.")] = None,
) -> None:
    """Hold a student against a margin or a policy. Exit codes: 0 pass, 1 regress, 4 inconclusive (nobody can say)."""
    from perplexity_lies.read.compare import compare_runs
    from perplexity_lies.read.comparison import load_comparison
    from perplexity_lies.read.gate import decide_all
    from perplexity_lies.read.policy import policy_of
    from perplexity_lies.read.verdicts import write_verdicts

    rules = policy_of(margin, policy)
    file = judged / "comparison.json" if judged.is_dir() else judged
    verdicts = decide_all(compare_runs(baseline, judged) if baseline else load_comparison(file), rules)
    for verdict in verdicts:
        who = f"{verdict.student}: " if len(verdicts) > 1 else ""
        typer.echo(printable(f"{who}{verdict}"))
    write_verdicts(verdicts, junit=junit, summary=summary, as_json=as_json)
    raise typer.Exit(verdicts[0].exit_code)


@app.command(
    "rank", epilog="plies rank plies-out/runs/smoke-a-... plies-out/runs/smoke-b-... plies-out/runs/smoke-c-..."
)
def rank_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories of three or more checkpoints.")],
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the ranking as JSON.")] = None,
) -> None:
    """Rank checkpoints by log-likelihood and by generation, and say whether the two agree."""
    from perplexity_lies.read.compare import compare_runs
    from perplexity_lies.read.ranking import rank, ranking_lines, write_ranking

    found = rank(compare_runs(*runs))
    for line in ranking_lines(found):
        typer.echo(printable(line))
    if as_json is not None:
        write_ranking(found, as_json)


@app.command("suites")
@with_options(RunOptions, "data")
def suites_command(
    options: RunOptions,
    name: Annotated[str | None, typer.Argument(help="One suite, or its file: in full.")] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="What `metric:` may be in each task, by rung.")] = False,
) -> None:
    """List the suites, or show one: its tasks, how each is asked, and its datasets."""
    from perplexity_lies.catalogue.mirror import open_mirror
    from perplexity_lies.catalogue.suite import catalogue, load_suite

    if name is None:
        for known in catalogue():
            suite = load_suite(known)
            typer.echo(
                f"{known:<12} {suite.title}: {', '.join(dict.fromkeys(t.series or t.name for t in suite.tasks))}"
            )
        return
    suite = load_suite(name)
    if metrics:
        for line in _metrics(suite):
            typer.echo(printable(line))
        return
    typer.echo(suite.path.read_text(encoding="utf-8"))
    mirror = open_mirror(options.data)
    for dataset in suite.datasets:
        try:
            typer.echo(f"# {dataset}: {mirror.folder(dataset)}")
        except PliesError as error:
            typer.echo(f"# {dataset}: {'; '.join(error.mend)}")


@data_app.command("fetch", epilog="plies data fetch paper ./hub")
def fetch_command(suite: SuiteArgument, folder: FolderArgument) -> None:
    """Download the datasets of SUITE into DIR in hub layout. What is there already stays."""
    from perplexity_lies.catalogue.fetch import fetch
    from perplexity_lies.catalogue.suite import load_suite

    for line in fetch(load_suite(suite), folder):
        typer.echo(printable(line))


@data_app.command("check", epilog="plies data check paper ./hub")
def check_command(suite: SuiteArgument, folder: FolderArgument) -> None:
    """What DIR holds of the datasets of SUITE: rows, revision, digest. Exit code 3 where some are missing."""
    from perplexity_lies.catalogue.fetch import check
    from perplexity_lies.catalogue.mirror import open_mirror
    from perplexity_lies.catalogue.suite import load_suite

    wanted, mirror = load_suite(suite), open_mirror(folder)
    for found in check(wanted, mirror):
        typer.echo(printable(str(found)))
    mirror.refuse_missing(wanted.datasets, f"plies data fetch {suite} {folder}")


@app.command("demo")
@with_options(RunOptions, "out", "limit")
def demo_command(options: RunOptions) -> None:
    """Compare the embedded teacher with its distilled student, here and now, with no network."""
    from perplexity_lies.api import compare as run_all

    found = run_all("builtin:teacher", "builtin:student", suite="miniature", **_fields(options))
    _show(found, _folder(options.out, found))


@app.command("doctor", epilog="plies doctor ./student")
@with_options(RunOptions, "chat_template_args", *ENGINE_OPTIONS)
def doctor_command(
    options: RunOptions,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Ask the engine that loads this one whether its numbers can be believed.")
    ] = None,
) -> None:
    """What is installed and what works; with a CHECKPOINT, what the artifact guard measures (exit code 1 when a check fails)."""
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
        measured = examine(checkpoint, options)
    Console().print(render_guard(measured))
    raise typer.Exit(EXIT_GATE_FAILED if measured.failed else 0)


@app.command(
    "distill",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def distill_command(context: typer.Context) -> None:
    """Make students: stages, layer selection, recipes (plies distill --help)."""
    from perplexity_lies.in_the_loop import measurer

    guest = from_table(GUESTS["distill"], "plies distill cannot run", "torch")
    guest(args=context.args, prog_name="plies distill", standalone_mode=False, obj=measurer)


def _leave_by_guard(failed: list[str], accepted: bool) -> None:
    """Where the artifact guard failed, say so in the last line and leave with the gate's code, unless that is accepted."""
    if failed:
        typer.echo(printable(f"The guard failed ({'; '.join(failed)}): these numbers may be the engine's doing."))
        raise typer.Exit(0 if accepted else EXIT_GATE_FAILED)


def _metrics(suite: Suite) -> Iterator[str]:
    """A line for each task and rung: the metrics that its library gives, the suite's own marked."""
    from perplexity_lies.protocols.hygiene import quarantine

    for task in suite.tasks:
        for rung, settings in task.rungs.items():
            with tempfile.TemporaryDirectory(prefix="plies-suite-") as scratch, quarantine(Path(scratch) / "log"):
                names = settings.metrics(task, suite)
            listed = ", ".join(f"{name} (the suite's)" if name == settings.metric else name for name in names)
            yield f"{task.name}, {RUNGS[rung].title}: {listed or 'told only when it is asked'}"


def _folder(out: Path, comparison: Comparison) -> Path:
    """Where a comparison's files go: one folder under `out` for each choice of checkpoints, suite and limit."""
    names = "-vs-".join(_word(side.name) for side in comparison.sides[:3])
    manifests = [side.manifest for side in comparison.sides]
    key = short_key(
        [[found.checkpoint.digest, found.suite.digest, found.suite.limit, found.settings] for found in manifests]
    )
    return out / f"{_word(comparison.suite_name)}-{names}-{key[:6]}"


def _fields(options: RunOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


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


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: what a console cannot show, in ASCII. A sign that is lost makes another number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(letter, "?") for letter in lost), error.end


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    codecs.register_error(SPELLED_OUT, _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is no reason to stop
            stream.reconfigure(errors=SPELLED_OUT)
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
