"""Fixtures of the commands' tests: `plies` in this process, a small suite, a comparison on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.cli import main

from .command import Plies, Said, process, write_suite


@pytest.fixture
def plies(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plies:
    """`plies("suites", "smoke")` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLIES_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: Any) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return Said(int(left.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="session")
def compared(
    tiny_llama: Path, tiny_checkpoint: Callable[..., Path], suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The --out of a comparison of two tiny checkpoints, made by the command in a process of its own."""
    out = tmp_path_factory.mktemp("compared") / "out"
    student = tiny_checkpoint("llama", seed=1)
    ran = process("compare", tiny_llama, student, "--suite", suite, "--out", out, "--device", "cpu", cwd=out.parent)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr and "loading" in ran.stderr
    assert "comparison.json" in ran.stdout and "report.html" in ran.stdout and "overall" in ran.stdout
    return out
