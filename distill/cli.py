"""`plies distill`: make students by recipe, plan what they will cost, compare them in grids.

The harness hands in the function that makes a measurer (`perplexity_lies.in_the_loop.measurer`) as the context's object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from perplexity_lies.in_the_loop import Measure
    from perplexity_lies.read.scores import Scores

    MakeMeasure = Callable[..., Measure]
    """Called with `suite`, `out`, `data`, `limit`, `device`."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make students of a teacher: recipes, what they will cost, grids of ablations.",
)

RecipeArgument = Annotated[
    str, typer.Argument(help="A bundled recipe (miniature, gendistill-qwen3-0.6b, radlads) or a file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Overlay, such as stage3b.objective=sft; may be repeated.")
]
TeacherOption = Annotated[
    str | None, typer.Option("--teacher", help="Directory, hub name or builtin:teacher, instead of the recipe's.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Directory for checkpoints, report and the stages' state.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PLIES_DATA", help="Offline mirror of the suite's datasets.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Measure on the first items of each task only.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads; more than one seldom helps at miniature size.")]


def _settings(teacher: str | None, given: list[str] | None) -> list[str]:
    """All overlays of a command, `--teacher` first."""
    return [*([f"teacher={teacher}"] if teacher else []), *(given or [])]


@contextmanager
def _prepared(device: str, threads: int) -> Iterator[str]:
    """Sets torch's threads, silences other libraries' progress bars, joins torchrun's processes; yields the device."""
    import torch
    from transformers.utils import logging

    from distill.training.distributed import processes
    from perplexity_lies.engines.device import resolve_device

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    with processes(str(resolve_device(device))) as where:
        yield where


def _show(scores: Mapping[str, Scores], out: Path) -> None:
    """Prints a line for each checkpoint and task, and where the files are."""
    from perplexity_lies.rungs import RUNGS

    rungs = [rung for rung in RUNGS.values() if any(rung.name in found.rungs for found in scores.values())]
    if rungs:
        typer.echo(f"{'checkpoint':<12}{'task':<12}" + "".join(f"{rung.title:>15}" for rung in rungs))
    for name, found in scores.items():
        for line in found.lines():
            cells = (f"{line.percent[r.name]:.1f}%" if r.name in line.percent else "" for r in rungs)
            typer.echo(f"{name:<12}{line.task:<12}" + "".join(f"{cell:>15}" for cell in cells))
    typer.echo(f"{out / 'student'}\n{out / 'report.html'}")


@app.command(epilog="plies distill run miniature --out build/embedded-pair")
def run(
    context: typer.Context,
    recipe: RecipeArgument,
    out: OutOption,
    teacher: TeacherOption = None,
    settings: SetOption = None,
    report_to: Annotated[list[str] | None, typer.Option(help="tensorboard or wandb, beside metrics.jsonl.")] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Spread the student over torchrun's processes in stages 3.")
    ] = False,
    data: DataOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Make a student; the same command after an interruption continues. Under torchrun, every process runs it."""
    from distill.recipe.files import load_recipe

    parsed = load_recipe(recipe, _settings(teacher, settings))
    make: MakeMeasure = context.obj
    measure: Measure | None = None

    from distill.pipeline import run_recipe
    from distill.plan.check import check_names
    from distill.training.distributed import is_first, world
    from distill.training.metrics import check_writers
    from perplexity_lies.errors import UsageError

    check_names(parsed)
    check_writers(report_to or ())
    with _prepared(device, threads) as where:
        if fsdp and world()[1] == 1:
            raise UsageError(
                "--fsdp spreads a student over processes", found="one process", mend="torchrun --nproc-per-node 2 ..."
            )
        if parsed.suite:
            measure = make(suite=parsed.suite, out=out / "measured", data=data, limit=limit, device=where)
        scores = run_recipe(parsed, out, device=where, measure=measure, report_to=report_to or (), sharded=fsdp)
        first = is_first()
    if first:
        _show(scores, out)


@app.command("plan", epilog="plies distill plan gendistill-qwen3-0.6b --device h200")
def show_plan(
    recipe: RecipeArgument,
    device: Annotated[str, typer.Option("--device", help="A device of the plan's table, such as h200.")] = "h200",
    teacher: TeacherOption = None,
    settings: SetOption = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="Measured shares of the device's peak, as benchmarks/stage_speed.py writes them."),
    ] = None,
) -> None:
    """Tokens, steps, FLOPs, memory and hours of a recipe, before anything starts."""
    from rich.console import Console

    from distill.pages.plans import render_plan
    from distill.plan.cost import plan, shares_from
    from distill.recipe.files import load_recipe

    shares = None if measured is None else shares_from(measured)
    Console().print(render_plan(plan(load_recipe(recipe, _settings(teacher, settings)), device, shares)))


@app.command(epilog="plies distill ablate miniature-findings --out build/findings")
def ablate(
    context: typer.Context,
    grid: Annotated[str, typer.Argument(help="A bundled grid (miniature-findings) or a file.")],
    out: OutOption,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Train these seeds alone; processes can share a grid so.")
    ] = None,
    data: DataOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Train every arm of a grid from common stages, measure all of them, print their ranking on every rung."""
    from rich.console import Console

    from distill.ablate import run_grid
    from distill.pages.ablation import render
    from distill.recipe.grids import load_grid, suite_of

    parsed = load_grid(grid)
    suite = suite_of(parsed)
    make: MakeMeasure = context.obj
    console = Console()
    with _prepared(device, threads) as where:
        measure = make(suite=suite, out=out / "measured", data=data, limit=limit, device=where)
        found = run_grid(parsed, out, device=where, measure=measure, seeds=seed or (), console=console)
    if found is None:
        console.print("other seeds are not done yet: run the same command without --seed when they are")
        return
    for table in render(found):
        console.print(table)
    console.print(str(out / "ablation.json"), soft_wrap=True, highlight=False)
