"""`python -m distill` and `plies distill`: a thin skin over the pipeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from perplexity_lies.errors import EXIT_INTERRUPTED, PliesError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """Make students: run a recipe of teacher and student."""


@app.command(epilog="python -m distill run miniature --out build/embedded-pair")
def run(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name (miniature) or a recipe file.")],
    out: Annotated[Path, typer.Option(help="Directory for teacher/, student/ and the stages' state.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more than one seldom helps at this size.")] = 1,
) -> None:
    """Run a recipe; the same command after an interruption continues."""
    from distill.recipe import load_recipe

    parsed = load_recipe(recipe)

    import torch
    from transformers.utils import logging

    from distill.pipeline import run_recipe

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    scores = run_recipe(parsed, out)
    typer.echo(f"{'checkpoint':<12}{'task':<12}{'log-likelihood':>15}{'generation':>12}")
    for name, tasks in scores.items():
        for task, s in tasks.items():
            typer.echo(f"{name:<12}{task:<12}{s.loglikelihood:>14.1f}%{s.generation:>11.1f}%")
    typer.echo(f"{out / 'teacher'}\n{out / 'student'}")


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="distill")
    except PliesError as error:
        print(f"distill: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("distill: interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
