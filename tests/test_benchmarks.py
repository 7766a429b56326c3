"""The scripts under benchmarks/ are not run here; that they still fit the code is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
PACKAGES = ("perplexity_lies", "suites", "reports", "distill")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_imports_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            lacking = [name.name for name in node.names if not hasattr(module, name.name)]
            assert [name for name in lacking if importlib.util.find_spec(f"{node.module}.{name}") is None] == []
