"""The worked examples of docs/extending.md: each file is written and each row added in a copy of the sources, then used.

A block that begins with `# file PATH` is a file, one with `# row of TABLE in PATH` a row of a table, and a `console` block
is run: what it shows below a command must be printed by that command.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("perplexity_lies", "suites", "reports", "distill")
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:#|\{#) file (\S+)(?: #\})?")
ROW = re.compile(r"# row of (\w+) in (\S+)")


@dataclass
class Example:
    """One section of the page."""

    files: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """(table, file, the row)."""
    commands: list[tuple[str, list[str]]] = field(default_factory=list)
    """(command, lines that it prints)."""

    @property
    def touched(self) -> set[str]:
        """Files of the packages that the example adds or changes."""
        return {name for name in (*self.files, *(file for _, file, _ in self.rows)) if name.split("/")[0] in PACKAGES}


def examples() -> dict[str, Example]:
    """Heading -> example."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        example = found[section.splitlines()[0]] = Example()
        for language, text in BLOCK.findall(section):
            first, _, rest = text.partition("\n")
            if language == "console":
                lines = text.splitlines()
                starts = [i for i, line in enumerate(lines) if line.startswith("$ ")] + [len(lines)]
                for start, stop in zip(starts, starts[1:], strict=False):
                    example.commands.append(
                        (lines[start][2:], [line for line in lines[start + 1 : stop] if line.strip()])
                    )
            elif row := ROW.fullmatch(first):
                example.rows.append((row[1], row[2], rest))
            elif file := FILE.match(first):
                example.files[file[1]] = rest
    return found


def add_row(path: Path, table: str, row: str) -> None:
    """Put `row` before the closing bracket of a table that stands in the file as `TABLE = {...}` or `TABLE = (...)`."""
    text = path.read_text(encoding="utf-8")
    begin = re.search(rf"^{table}\b[^=\n]*= [^\n]*[\[{{(]\n", text, re.MULTILINE)
    assert begin is not None, f"{path.name} has no table {table}"
    end = re.compile(r"^[\]})]", re.MULTILINE).search(text, begin.end())
    assert end is not None
    path.write_text(text[: end.start()] + row + text[end.start() :], encoding="utf-8")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the packages that an example may change."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("name", list(examples()))
def test_example_works(sources: Path, name: str) -> None:
    example = examples()[name]
    for file, text in example.files.items():
        (sources / file).parent.mkdir(parents=True, exist_ok=True)
        assert not (sources / file).exists(), f"{file} is there already"
        (sources / file).write_text(text, encoding="utf-8")
    for table, file, row in example.rows:
        add_row(sources / file, table, row)
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    environment.pop("PLIES_DATA", None)
    assert example.commands
    for command, printed in example.commands:
        words = shlex.split(command)
        if words[0] == "plies":
            words[:1] = [sys.executable, "-m", "perplexity_lies.cli"]
        words = [sys.executable if word == "python" else word for word in words]
        done = subprocess.run(words, cwd=sources, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        for line in printed:
            assert " ".join(line.split()) in " ".join(done.stdout.split()), f"{command}\n{done.stdout}"


@pytest.mark.parametrize("name", list(examples()))
def test_example_touches_one_file_and_at_most_one_table_row(name: str) -> None:
    example = examples()[name]
    assert len([file for file in example.files if file.split("/")[0] in PACKAGES]) <= 1 and len(example.rows) <= 1


def test_every_way_to_extend_has_an_example() -> None:
    words = ("task", "extractor", "rung", "engine", "mixer", "selector", "report section")
    assert [word for word in words if not any(word in name.lower() for name in examples())] == []
