"""What is not a run directory, or not one of this version: refused with the place of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.errors import UsageError
from perplexity_lies.record.manifest import RUN_FORMAT, CheckpointFacts, Manifest, SuiteFacts
from perplexity_lies.record.store import open_run, start_run

MANIFEST = Manifest(
    checkpoint=CheckpointFacts(
        name="a", kind="local", digest="sha256:aa", weights_digest="w", tokenizer_digest="t", config_digest="c"
    ),
    suite=SuiteFacts(name="s", digest="sha256:bb"),
)


def begin(out: Path) -> Any:
    return start_run(out, identity={}, manifest=MANIFEST, label="s-a")


def refused(path: Path) -> UsageError:
    with pytest.raises(UsageError) as error:
        open_run(path)
    assert str(path) in error.value.asked and error.value.mend[0].startswith("plies evaluate")
    return error.value


def test_nothing_a_file_and_an_empty_directory_are_not_runs(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").found == ("nothing there",)
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").found == ("a file",)
    assert refused(tmp_path).found == ("no manifest.json",)


def test_folder_of_runs_names_the_runs_in_it(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.close()
    assert run.path.name in refused(tmp_path).found[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "states no format number"),
        ("{}", "states no format number"),
        (json.dumps({"format": "2"}), "states no format number"),
    ],
)
def test_broken_manifest_says_what_is_wrong(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert found in refused(tmp_path).found[0]


def test_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe{}")
    assert "is not JSON" in refused(tmp_path).found[0]


def test_run_of_another_format_says_which_command_repeats_it(tmp_path: Path) -> None:
    old = {"format": 1, "checkpoint": {"name": "./student"}, "suite": {"name": "smoke", "limit": 50}}
    run = tmp_path / "runs" / "smoke-student"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps(old))
    error = refused(run)
    assert "made by format 1" in error.asked and f"reads format {RUN_FORMAT}" in error.found[0]
    assert error.mend[0].startswith(f"plies evaluate ./student --suite smoke --limit 50 --out {tmp_path}")
    for strange in ({"format": 99}, {"format": 1, "checkpoint": 5, "suite": []}):
        (run / "manifest.json").write_text(json.dumps(strange))
        assert "made by format" in refused(run).asked


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suite": {}}, "suite lacks `name`"),
        ({"complete": "yes"}, "complete should be a boolean"),
        ({"suite": {"name": "s", "digest": "d", "limit": 2.5}}, "suite.limit should be an integer"),
        ({"guard": {"batch size": {"passed": 1}}}, "guard.batch size"),
        (
            {"tasks": [{"name": "a", "rungs": {"loglikelihood": {"chance": "?"}}}]},
            "tasks[0].rungs.loglikelihood.chance",
        ),
        ({"finished": True}, "unknown key 'finished'"),
    ],
)
def test_manifest_with_a_wrong_value_names_its_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**json.loads(MANIFEST.to_json()), **change}))
    assert said in refused(tmp_path).asked


def test_manifest_comes_back_equal(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.close()
    assert open_run(run.path).manifest == MANIFEST
