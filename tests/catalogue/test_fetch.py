"""What a mirror holds of a suite's datasets, and a hub that cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from perplexity_lies.catalogue.fetch import check, fetch
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.narrow import narrow
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.errors import MissingError, UsageError


def filled(folder: Path) -> Path:
    (folder / "baber/piqa").mkdir(parents=True)
    parquet.write_table(pyarrow.table({"goal": ["a", "b", "c"]}), folder / "baber/piqa/validation.parquet")
    (folder / "REVISIONS.json").write_text(json.dumps({"baber/piqa": "abc123"}))
    return folder


def test_check_tells_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    one, other = check(narrow(load_suite("paper"), tasks="piqa"), Mirror(filled(tmp_path)))
    assert (one.name, one.rows, one.revision) == ("baber/piqa", 3, "abc123") and one.digest.startswith("sha256:")
    assert str(other) == "extraordinarylab/piqa: missing"


def test_all_missing_datasets_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        Mirror(filled(tmp_path)).refuse_missing(load_suite("paper").datasets, "plies data fetch paper DIR")
    assert "Rowan/hellaswag" in caught.value.asked and "google/IFEval" in caught.value.asked
    assert "baber/piqa" not in caught.value.asked


def test_without_a_network_fetch_refuses_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    lines = fetch(narrow(load_suite("paper"), tasks="piqa"), filled(tmp_path))
    assert next(lines) == "baber/piqa: there"
    with pytest.raises(MissingError, match="extraordinarylab/piqa cannot be fetched"):
        next(lines)
    assert (tmp_path / "baber/piqa/validation.parquet").exists()


def test_a_damaged_table_of_revisions_is_told(tmp_path: Path) -> None:
    (filled(tmp_path) / "REVISIONS.json").write_text("[1]")
    with pytest.raises(UsageError, match="REVISIONS.json is not a table"):
        list(check(load_suite("paper"), Mirror(tmp_path)))
