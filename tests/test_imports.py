"""Who may import whom, that every such rule can fail, and that importing does nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("perplexity_lies", "suites", "reports", "distill")

VIOLATIONS = {
    "floors": ("perplexity_lies/catalogue/suite.py", "def f():\n    from perplexity_lies.engines import base"),
    "distill-floors": ("distill/data/encode.py", "import distill.pipeline"),
    "suites-alone": ("suites/__init__.py", "import perplexity_lies.record.records"),
    "guests-by-name": ("perplexity_lies/read/stats/moments.py", "def f():\n    import distill"),
    "guests-apart": ("reports/terminal.py", "import distill"),
    "wings": ("perplexity_lies/read/gate.py", "from perplexity_lies import checkpoint"),
    "read-wing-light": ("reports/terminal.py", "def f():\n    from transformers import AutoTokenizer"),
    "checkpoint-light": ("perplexity_lies/checkpoint/preflight.py", "import torch"),
    "lm-eval-door": ("perplexity_lies/run.py", "def f():\n    import lm_eval.api"),
    "evalscope-door": ("perplexity_lies/protocols/loglikelihood.py", "import evalscope"),
    "vllm-door": ("perplexity_lies/engines/torch.py", "import vllm"),
    "fla-door": ("distill/__init__.py", "import fla"),
    "no-circles": ("perplexity_lies/errors.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
                   "    import perplexity_lies.read.stats.regimes\n    import perplexity_lies.read.compare"),
}  # fmt: skip
"""Contract -> a file and what, written at its end, breaks the contract. Imports in functions and for types count."""

HEAVY = ("torch", "transformers", "lm_eval", "evalscope", "datasets")
READ_WING = ("errors", "record.store", "extract", "reread", "read.compare", "read.gate")
LIGHT_MODULES = (
    *PACKAGES,
    "perplexity_lies.cli",
    "perplexity_lies.doctor",
    "perplexity_lies.checkpoint.lookup",
    *(f"perplexity_lies.{module}" for module in READ_WING),
)

PROBE = """
import json, logging, os, sys
def state():
    root = logging.getLogger()
    return {"environ": dict(os.environ), "handlers": [repr(h) for h in root.handlers], "level": root.level,
            "cwd": os.getcwd(), "threads": len(sys._current_frames())}
before = state()
__import__(sys.argv[1])
print(json.dumps({"changed": [key for key, value in state().items() if value != before[key]],
                  "heavy": [name for name in sys.argv[2:] if name in sys.modules]}))
"""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` on the packages under `root`."""
    program = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [str(program), "--no-cache", "--no-logo", "--config", str(root / "pyproject.toml")]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def contracts() -> dict[str, str]:
    """id -> name, of every rule."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {contract["id"]: contract["name"] for contract in settings["contracts"]}


def test_import_rules_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(contracts())} kept, 0 broken" in done.stdout


def test_every_rule_has_a_violation() -> None:
    assert set(VIOLATIONS) == set(contracts())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages' Python files to plant violations in."""
    root = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            (root / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path.relative_to(ROOT))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_rule_can_fail(sources: Path, rule: str) -> None:
    file, line = VIOLATIONS[rule]
    original = (sources / file).read_text()
    try:
        (sources / file).write_text(f"{original}\n{line}\n")
        done = lint(sources)
    finally:
        (sources / file).write_text(original)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contracts()[rule]} BROKEN" in done.stdout


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_import_does_nothing(module: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TOKENIZERS_"))}
    command = [sys.executable, "-c", PROBE, module, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"changed": [], "heavy": []}
    assert list(tmp_path.iterdir()) == []


def test_the_probe_sees_what_an_import_does(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text("import logging, os\nlogging.basicConfig()\nos.environ['X_NOISE'] = '1'\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "noisy", "logging"], capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout) == {"changed": ["environ", "handlers"], "heavy": ["logging"]}
