"""Names that lead to no checkpoint: what is near, what to type; and files that may not be read."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError, MissingError, PliesError, UsageError

from .damage import WEIGHTS


def test_absent_directory_names_what_is_near(llama_copy: Path) -> None:
    with pytest.raises(MissingError) as caught:
        resolve(str(llama_copy) + "s")
    assert caught.value.exit_code == 3
    assert f"did you mean {llama_copy}?" in caught.value.mend
    assert str(llama_copy) in " ".join(caught.value.found)


def test_slip_in_a_path_is_no_hub_id(llama_copy: Path, monkeypatch: pytest.MonkeyPatch, network_attempts: list) -> None:
    monkeypatch.chdir(llama_copy.parent.parent)
    with pytest.raises(MissingError, match="does not exist"):
        resolve(f"{llama_copy.parent.name}/checkpont")
    assert network_attempts == []


def test_file_instead_of_directory(llama_copy: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file, not a directory") as caught:
        resolve(str(llama_copy / WEIGHTS))
    assert caught.value.mend == (f"give that directory: {llama_copy}",)


@pytest.mark.parametrize(
    ("name", "kind", "mend"),
    [
        ("", UsageError, "builtin:teacher"),
        ("builtin:techer", UsageError, "builtin:teacher"),
        ("https://huggingface.co/some-org/some", UsageError, "ORG/NAME"),
        ("no such thing", MissingError, r"ORG/NAME\[@REVISION\]"),
        ("x" * 5000, PliesError, "path"),
    ],
)
def test_strings_that_name_nothing(name: str, kind: type[PliesError], mend: str) -> None:
    with pytest.raises(kind) as caught:
        resolve(name)
    assert caught.value.exit_code == (2 if kind is UsageError else 3)
    assert re.search(mend, " ".join(caught.value.mend))


def test_hub_out_of_reach_tells_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network_attempts: list
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        resolve("some-org/absent@v2")
    assert "hf download some-org/absent --revision v2" in " ".join(caught.value.mend)
    assert len(str(caught.value).splitlines()) <= 6
    assert network_attempts, "the hub must have been asked"
    network_attempts.clear()


@pytest.fixture
def as_nobody(llama_copy: Path) -> Iterator[Path]:
    """A checkpoint outside root's private directories, with the rights of an ordinary user."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        directory = Path(shutil.copytree(llama_copy, Path(root) / "checkpoint"))
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield directory
        finally:
            if was_root:
                os.seteuid(0)
            directory.chmod(0o755)


@pytest.mark.parametrize("locked", [WEIGHTS, "config.json", "tokenizer_config.json", "."])
def test_permission_denied(as_nobody: Path, locked: str) -> None:
    target = as_nobody / locked
    was = os.geteuid()
    if was == 65534:
        os.seteuid(0)
    target.chmod(0)
    os.seteuid(was)
    with pytest.raises(CheckpointError, match="may not be read") as caught:
        resolve(str(as_nobody))
    assert "permission denied" in caught.value.found[0]
    assert "chmod -R u+rX" in caught.value.mend[0]
