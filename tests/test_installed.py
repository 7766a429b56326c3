"""Versions are read off metadata; what an extra lacks is one line; nothing heavy is imported."""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from perplexity_lies import installed
from perplexity_lies.errors import MissingError
from perplexity_lies.installed import Finding, State

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


def install(folder: Path, name: str, version: str, more: str = "") -> None:
    """Metadata of a package, without the package."""
    (folder / f"{name}-{version}.dist-info").mkdir()
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(text)


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """What is found where our own metadata asks for a rich that does not exist yet."""
    install(tmp_path, "perplexity_lies", "0.1.0", METADATA.split("0.1.0\n", 1)[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    return {finding.name: finding for finding in installed.packages()}


def test_versions_and_ranges(findings: dict[str, Finding]) -> None:
    assert (findings["numpy"].state, findings["numpy"].found) == (State.OK, metadata.version("numpy"))
    assert findings["numpy"].mend == ""
    assert findings["rich"].state is State.WRONG and findings["rich"].found.endswith("wants >=9999")
    assert findings["rich"].mend == "pip install perplexity-lies"
    assert (findings["lm-eval"].group, findings["lm-eval"].state) == ("eval", State.OK)
    assert (findings["vllm"].group, findings["vllm"].state) == ("vllm", State.ABSENT)
    assert findings["vllm"].mend == 'pip install "perplexity-lies[vllm]"'
    assert "ruff" not in findings, "tools of development are not the user's business"


def test_a_missing_extra_is_one_line(findings: dict[str, Finding]) -> None:
    installed.require("plies evaluate needs it", "eval")
    with pytest.raises(MissingError) as caught:
        installed.require("--engine vllm was given", "vllm")
    assert caught.value.exit_code == 3 and caught.value.found == ("not installed: vllm",)
    assert caught.value.mend[0] == 'pip install "perplexity-lies[vllm]"'


def test_every_package_of_ours_has_a_purpose_and_is_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in installed.EXTRAS if extra for line in extras[extra])]
    assert {Requirement(line).name for line in lines} - {"perplexity-lies"} == set(installed.PURPOSES)
    wrong = [finding for finding in installed.packages() if finding.state is not State.OK]
    assert {finding.group for finding in wrong} <= {"fla", "vllm"}


def test_versions_are_those_of_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed.versions()
    assert found["python"] == platform.python_version()
    for name in ("perplexity-lies", "torch", "transformers", "tokenizers", "lm-eval", "evalscope", "datasets"):
        assert found[name] == metadata.version(name)
    install(tmp_path, "vllm", "0.33.7")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed.versions() == {**found, "vllm": "0.33.7"}


def test_a_library_added_to_the_list_changes_no_key_of_a_run_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = installed.versions()
    monkeypatch.setattr(installed, "VERSIONED", (*installed.VERSIONED, "not-installed-anywhere"))
    assert installed.versions() == before


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from perplexity_lies import installed; installed.require('this', 'eval'); installed.versions();"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'rich', 'perplexity_lies.checkpoint') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
