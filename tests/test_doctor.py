"""The doctor reads versions off metadata, says what is missing and what to type, and imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from perplexity_lies import doctor
from perplexity_lies.doctor import Finding, State
from perplexity_lies.errors import MissingError

METADATA = """\
Metadata-Version: 2.4
Name: perplexity-lies
Version: 0.1.0
Requires-Dist: numpy>=1
Requires-Dist: rich>=9999
Requires-Dist: perplexity-lies[torch]; extra == "eval"
Requires-Dist: lm-eval>=0.4; extra == "eval"
Requires-Dist: vllm>=0.33; extra == "vllm"
Requires-Dist: ruff==0.17.5; extra == "dev"
"""


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """A report where our own metadata asks for a rich that does not exist yet."""
    (tmp_path / "perplexity_lies-0.1.0.dist-info").mkdir()
    (tmp_path / "perplexity_lies-0.1.0.dist-info" / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLIES_DATA", raising=False)
    return {finding.name: finding for finding in doctor.report()}


def text(findings: list[Finding]) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    console.print(doctor.render(findings))
    return console.export_text()


def test_versions_and_ranges(findings: dict[str, Finding]) -> None:
    assert (findings["numpy"].state, findings["numpy"].found) == (State.OK, importlib.metadata.version("numpy"))
    assert findings["rich"].state is State.WRONG and findings["rich"].found.endswith("wants >=9999")
    assert findings["rich"].mend == "pip install perplexity-lies"
    assert (findings["lm-eval"].group, findings["lm-eval"].state) == ("eval", State.OK)
    assert (findings["vllm"].group, findings["vllm"].state) == ("vllm", State.ABSENT)
    assert findings["vllm"].mend == 'pip install "perplexity-lies[vllm]"'
    assert "ruff" not in findings, "tools of development are not the user's business"


def test_what_the_demo_needs_decides_the_exit_code(findings: dict[str, Finding]) -> None:
    assert doctor.exit_code(list(findings.values())) == 3
    needless = [
        finding for finding in findings.values() if finding.state is State.OK or finding.name in ("vllm", "CUDA")
    ]
    assert any(finding.state is not State.OK for finding in needless)
    assert doctor.exit_code(needless) == 0


def test_a_missing_extra_is_one_line(findings: dict[str, Finding]) -> None:
    doctor.require("plies evaluate needs it", "eval")
    with pytest.raises(MissingError) as caught:
        doctor.require("--engine vllm was asked for", "vllm")
    assert caught.value.exit_code == 3 and caught.value.found == ("not installed: vllm",)
    assert caught.value.mend[0] == 'pip install "perplexity-lies[vllm]"'


def test_rendering_says_what_to_type(findings: dict[str, Finding]) -> None:
    shown = text(list(findings.values()))
    assert "plies demo cannot run here yet." in shown
    assert 'vllm:  pip install "perplexity-lies[vllm]"' in shown
    assert "plies demo can run." in text([finding for finding in findings.values() if finding.state is State.OK])


def test_data_mirror_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIES_DATA", str(tmp_path / "gone"))
    assert next(f for f in doctor.report() if f.name == "PLIES_DATA").state is State.WRONG
    (tmp_path / "gone").mkdir()
    assert next(f for f in doctor.report() if f.name == "PLIES_DATA").state is State.OK


def test_our_own_metadata_covers_every_purpose() -> None:
    named = {finding.name for finding in doctor.report()}
    assert set(doctor.PURPOSES) <= named
    assert {f.state for f in doctor.report() if f.group in ("base", "torch", "eval")} == {State.OK}


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from perplexity_lies import doctor; findings = doctor.report();"
        "cuda = next(f for f in findings if f.name == 'CUDA').state == 'ok';"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'evalscope') if m in sys.modules and not cuda])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
