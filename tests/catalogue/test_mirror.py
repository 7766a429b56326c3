"""The offline mirror: where a dataset lies, what is told of one that is missing, what its digest is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.catalogue.mirror import open_mirror
from perplexity_lies.errors import MissingError, UsageError


def hub(path: Path, aliases: Any = None) -> Path:
    (path / "org" / "real").mkdir(parents=True)
    (path / "org" / "real" / "data.txt").write_text("rows")
    if aliases is not None:
        (path / "ALIASES.json").write_text(aliases if isinstance(aliases, str) else json.dumps(aliases))
    return path


def test_mirror_finds_a_dataset_by_name_and_by_alias(tmp_path: Path) -> None:
    mirror = open_mirror(hub(tmp_path, {"other/name": "org/real"}))
    assert mirror.folder("org/real") == mirror.folder("other/name") == (tmp_path / "org" / "real").resolve()
    assert mirror.digest("org/real") == mirror.digest("other/name")


def test_missing_dataset_says_what_is_there_and_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as error:
        open_mirror(hub(tmp_path)).folder("Rowan/hellaswag")
    assert error.value.found == ("1 datasets there: org/real",)
    fetch = f"hf download --repo-type dataset Rowan/hellaswag --local-dir {tmp_path}/Rowan/hellaswag"
    assert error.value.mend == (fetch,)


def test_no_mirror_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLIES_DATA", raising=False)
    with pytest.raises(MissingError) as error:
        open_mirror(None).folder("Rowan/hellaswag")
    assert "PLIES_DATA" in error.value.found[0] and "hf download" in error.value.mend[0]


def test_environment_names_the_mirror_and_the_option_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIES_DATA", str(hub(tmp_path / "a")))
    assert open_mirror(None).path == tmp_path / "a"
    assert open_mirror(hub(tmp_path / "b")).path == tmp_path / "b"
    monkeypatch.setenv("PLIES_DATA", str(tmp_path / "none"))
    with pytest.raises(MissingError) as error:
        open_mirror(None)
    assert "PLIES_DATA" in error.value.asked and "is not a directory" in error.value.asked
    monkeypatch.setenv("PLIES_DATA", "")
    assert open_mirror(None).path is None


@pytest.mark.parametrize("aliases", ["{", "[]", {"a": 5}, '{"a": "\\u0000'])
def test_broken_aliases_are_named(tmp_path: Path, aliases: Any) -> None:
    with pytest.raises(UsageError) as error:
        open_mirror(hub(tmp_path, aliases)).folder("other/name")
    assert "ALIASES.json" in error.value.asked and error.value.found and error.value.mend


def test_digest_of_a_dataset_is_over_names_and_bytes_not_over_place(tmp_path: Path) -> None:
    here = open_mirror(hub(tmp_path / "a"))
    there = open_mirror(hub(tmp_path / ".cache" / "b"))
    before = here.digest("org/real")
    assert before == there.digest("org/real")
    (tmp_path / ".cache" / "b" / "org" / "real" / "data.txt").write_text("rowS")
    assert there.digest("org/real") != before
    (tmp_path / "a" / "org" / "real" / ".cache").mkdir()
    (tmp_path / "a" / "org" / "real" / ".cache" / "hf").write_text("what hf download keeps")
    assert here.digest("org/real") == before
    (tmp_path / "a" / "org" / "real" / "data.txt").rename(tmp_path / "a" / "org" / "real" / "date.txt")
    assert here.digest("org/real") != before
