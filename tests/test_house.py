"""The house rules that a reader cannot be asked to keep in mind: sizes, names, options, first words of docstrings."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from perplexity_lies.cli import app
from perplexity_lies.options import MANY_OPTIONS, MOST_OPTIONS

ROOT = Path(__file__).parents[1]
PACKAGES = ("perplexity_lies", "suites", "reports", "distill")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 60

SHARED_NAMES: dict[str, str] = {
    "T": "a type variable",
    "context": "what a section of the page is filled with, one function a section",
    "logger": "the module's own logger, by the habit of the standard library",
    "render": "what a page or a finding looks like on a terminal, beside what it shows",
}
"""Public name that several modules of one package bear, and why."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_no_module_is_long(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".js", ".j2")
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_long() -> None:
    found = {
        f"{name}: {node.name}": node.end_lineno - node.lineno + 1
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert {name: lines for name, lines in found.items() if lines > MOST_FUNCTION_LINES} == {}


def test_no_name_is_borne_twice_in_a_package() -> None:
    bearers: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, tree in modules():
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.append(node.target.id)
            for borne in names:
                if not borne.startswith("_") and borne not in SHARED_NAMES:
                    bearers[name.split("/")[0], borne].append(name)
    twice = {f"{package}: {borne}": files for (package, borne), files in bearers.items() if len(files) > 1}
    assert twice == {}


def test_no_docstring_makes_the_reader_decode_it() -> None:
    """`Of this row alone: ...` says neither what it is nor what it does."""
    bad = ("Of ", "The same of", "The same,", "As in ")
    others = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    trees = [
        *modules(),
        *((str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in others),
    ]
    found = [
        f"{name}:{node.lineno}: {node.value.value[:40]}"
        for name, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if node.value.value.lstrip().startswith(bad)
    ]
    assert found == []


def commands() -> Iterator[tuple[str, int]]:
    """Each command with the number of its options."""
    from distill.cli import app as distill

    for prefix, group in (("", app), ("distill ", distill)):
        command = typer.main.get_command(group)
        for name, inner in command.commands.items():  # type: ignore[attr-defined]
            options = [parameter for parameter in inner.params if parameter.param_type_name == "option"]
            yield prefix + name, len([option for option in options if option.name != "help"])


def test_commands_with_many_options_say_why() -> None:
    many = {name for name, options in commands() if options > MOST_OPTIONS}
    assert many == set(MANY_OPTIONS)
