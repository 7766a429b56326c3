"""`plies doctor`: what it finds here, its exit code, what it prints; it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from perplexity_lies import doctor
from perplexity_lies.installed import Finding, State, packages


def finding(name: str, state: State, mend: str = "", for_demo: bool = False) -> Finding:
    return Finding(group="base", name=name, state=state, found="found", purpose="purpose", mend=mend, for_demo=for_demo)


NUMPY = finding("numpy", State.OK, for_demo=True)
RICH = finding("rich", State.WRONG, mend="pip install perplexity-lies", for_demo=True)
VLLM = finding("vllm", State.ABSENT, mend='pip install "perplexity-lies[vllm]"')


def text(findings: list[Finding]) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    console.print(doctor.render(findings))
    return console.export_text()


def test_what_the_demo_needs_decides_the_exit_code() -> None:
    assert doctor.exit_code([NUMPY, RICH]) == 3
    assert doctor.exit_code([NUMPY, VLLM]) == 0


def test_rendering_says_what_to_type() -> None:
    shown = text([NUMPY, RICH, VLLM])
    assert "plies demo cannot run here yet." in shown
    assert 'vllm:  pip install "perplexity-lies[vllm]"' in shown
    assert "plies demo can run." in text([NUMPY])


def test_data_mirror_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIES_DATA", str(tmp_path / "gone"))
    assert next(f for f in doctor.report() if f.name == "PLIES_DATA").state is State.WRONG
    (tmp_path / "gone").mkdir()
    assert next(f for f in doctor.report() if f.name == "PLIES_DATA").state is State.OK


def test_the_report_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {finding.name: finding for finding in doctor.report()}
    assert {installed.name for installed in packages()} <= set(found)
    for name in ("python", "this directory", "builtin:teacher", "builtin:student"):
        assert found[name].state is State.OK and found[name].for_demo
    assert found["builtin:teacher"].found.startswith("823,296 parameters, sha256:")
    assert doctor.exit_code(list(found.values())) == 0


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from perplexity_lies import doctor; findings = doctor.report();"
        "cuda = next(f for f in findings if f.name == 'CUDA').state == 'ok';"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'evalscope') if m in sys.modules and not cuda])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
