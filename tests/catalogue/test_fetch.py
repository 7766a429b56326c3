"""What a mirror holds of a suite's datasets, and a hub that cannot be had."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from perplexity_lies.catalogue.fetch import check, fetch
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.narrow import narrow
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.errors import MissingError, UsageError

COMMIT = "a" * 40
ROWS = pyarrow.table({"goal": ["a", "b", "c", "d"]})


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub for when it downloads a dataset; `cut` lets every file break off in the middle."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    cut = False

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/tree/" in path:
            listed = [{"type": "file", "oid": "0" * 40, "size": len(v), "path": k} for k, v in self.files.items()]
            data, tag = json.dumps(listed).encode(), ""
        elif "/resolve/" in path:
            data = self.files[path.partition(f"{COMMIT}/")[2]]
            tag = hashlib.sha1(data).hexdigest()  # noqa: S324
        else:
            data, tag = json.dumps({"id": "o/n", "sha": COMMIT, "tags": [], "siblings": []}).encode(), ""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if tag:
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if tag and self.cut else data)
            self.close_connection = bool(tag and self.cut)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    parquet.write_table(ROWS, tmp_path / "rows")
    kind = type(
        "ThisHub", (Hub,), {"files": {"README.md": b"# rows", "data/x.parquet": (tmp_path / "rows").read_bytes()}}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield kind
        server.shutdown()


def test_what_lacks_is_fetched_at_a_commit_that_is_written_down(tmp_path: Path, hub: type[Hub]) -> None:
    suite, folder = narrow(load_suite("paper"), tasks="piqa"), tmp_path / "hub"
    assert list(fetch(suite, folder)) == [f"{name}: fetched at {COMMIT}" for name in suite.datasets]
    for found in check(suite, Mirror(folder)):
        assert (found.rows, found.revision) == (4, COMMIT)
    assert list(fetch(suite, folder)) == [f"{name}: there" for name in suite.datasets]


def test_a_download_that_broke_off_is_not_taken_for_a_dataset(tmp_path: Path, hub: type[Hub]) -> None:
    suite, folder = narrow(load_suite("paper"), tasks="piqa"), tmp_path / "hub"
    hub.cut = True
    with pytest.raises(MissingError, match="baber/piqa cannot be fetched"):
        next(fetch(suite, folder))
    assert Mirror(folder).missing(suite.datasets) == list(suite.datasets)
    hub.cut = False
    assert next(fetch(suite, folder)) == f"baber/piqa: fetched at {COMMIT}"
    assert next(iter(check(suite, Mirror(folder)))).rows == 4


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
