"""The run directory: what is on disk survives a kill, belongs to one process at a time, and is refused when it is not ours."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.digests import content_key, short_key, without_defaults
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.files import write_whole
from perplexity_lies.record.journal import Journal
from perplexity_lies.record.manifest import CheckpointFacts, Manifest, SuiteFacts
from perplexity_lies.record.records import ItemRecord, Reading, Status
from perplexity_lies.record.store import open_run, start_run
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

IDENTITY: dict[str, Any] = {
    "checkpoint": "sha256:aa",
    "suite": "sha256:bb",
    "datasets": {"org/name": "sha256:cc"},
    "limit": None,
    "asked": {"engine": "torch", "device": "cpu", "dtype": "float32"},
    "versions": {"python": "3.11", "torch": "2"},
}
MANIFEST = Manifest(
    checkpoint=CheckpointFacts(
        name="a", kind="local", digest="sha256:aa", weights_digest="w", tokenizer_digest="t", config_digest="c"
    ),
    suite=SuiteFacts(name="s", digest="sha256:bb"),
)

HOLDER = """
import sys, time
from pathlib import Path
from perplexity_lies.record.store import start_run
import json
from perplexity_lies.checked import checked
from perplexity_lies.record.manifest import Manifest
manifest = checked(Manifest, json.loads(sys.argv[3]), "manifest")
run = start_run(Path(sys.argv[1]), identity=json.loads(sys.argv[2]), manifest=manifest, label="s-a")
print("held", flush=True)
time.sleep(600)
"""


def record(item: str, task: str = "t", rung: str = GENERATION, **more: Any) -> ItemRecord:
    reading = Reading(extractor="x@1", status=Status.SCORED, score=1.0, metric="m")
    return ItemRecord(
        task=task, item=item, rung=rung, prompt="p", prompt_sha256="00", gold="g", readings=(reading,), **more
    )


@dataclass(frozen=True)
class Answer:
    """What an engine gives, as far as a journal cares."""

    key: str
    text: str = ""
    nats: float = 0.0


def begin(out: Path, label: str = "s-a", **changed: Any) -> Any:
    return start_run(out, identity={**IDENTITY, **changed}, manifest=MANIFEST, label=label)


# --- the journal ----------------------------------------------------------------------------------------------------


def test_journal_keeps_what_was_added_across_openings(tmp_path: Path) -> None:
    path = tmp_path / "responses" / "generation.jsonl"
    journal = Journal(path)
    assert len(journal) == 0 and not journal.finished("a")
    journal.add([Answer("a", "een"), Answer("b", "twee\u2028drie")])
    assert journal.finished("a") and journal.get("b")["text"] == "twee\u2028drie"
    journal.close()

    again = Journal(path)
    assert len(again) == 2
    assert again.get("b") == {"key": "b", "nats": 0.0, "text": "twee\u2028drie"}
    again.add([Answer("c")])
    again.close()
    assert [json.loads(line)["key"] for line in path.read_bytes().split(b"\n")[:-1]] == ["a", "b", "c"]


def test_journal_is_on_disk_before_add_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.add([Answer("a")])
    assert (tmp_path / "j.jsonl").read_text() == '{"key":"a","nats":0.0,"text":""}\n'
    journal.close()


def test_journal_get_of_an_unknown_key_raises(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    with pytest.raises(KeyError):
        journal.get("a")
    journal.close()


@pytest.mark.parametrize("cut", [1, 5, 10])
def test_torn_last_line_is_dropped_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    whole = b'{"key":"a","text":"\xc3\xa9"}\n'
    path.write_bytes(whole + b'{"key":"b"}\n'[:cut])
    with caplog.at_level(logging.WARNING):
        journal = Journal(path)
    assert len(journal) == 1 and journal.get("a")["text"] == "é"
    assert f"torn last line of {cut} bytes" in caplog.text and str(path) in caplog.text
    journal.add([Answer("b")])
    journal.close()
    assert path.read_bytes() == whole + b'{"key":"b","nats":0.0,"text":""}\n'


@pytest.mark.parametrize(
    "garbage", ["not json", '{"no": "key"}', "[1, 2]", '"text"', "7", "null", '{"key": []}', "\x00"]
)
def test_garbage_line_is_reported_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, garbage: str
) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(f'{{"key":"a"}}\n{garbage}\n{{"key":"c"}}\n')
    with caplog.at_level(logging.WARNING):
        journal = Journal(path)
    assert len(journal) == 2 and journal.finished("a") and journal.finished("c")
    assert f"{path}:2" in caplog.text and "computed again" in caplog.text
    journal.close()


def test_line_that_is_not_utf8_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"key":"a"}\n{"key":"\xff\xfe"}\n')
    journal = Journal(path)
    assert len(journal) == 1
    journal.close()


def test_later_line_of_a_key_wins(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"key":"a","n":1}\n{"key":"a","n":2}\n')
    journal = Journal(path)
    assert len(journal) == 1 and journal.get("a")["n"] == 2
    journal.close()


# --- files replaced whole -------------------------------------------------------------------------------------------


def test_kill_before_the_rename_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_whole(path, "old")

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "new, and longer than the old one")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_draft_of_a_killed_write_is_not_taken_for_records(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.write_records(GENERATION, [record("1"), record("2")])
    (run.path / "records" / "u.generation.jsonl.tmp").write_text("half a li")
    assert [r.item for r in run.records()] == ["1", "2"]
    run.close()


# --- records --------------------------------------------------------------------------------------------------------


def test_records_come_back_equal_and_in_order(tmp_path: Path) -> None:
    run = begin(tmp_path)
    told = [record("2"), record("1", text="a\nb\u2028c\r"), record("9", task="u", choices=("x", "y"))]
    run.write_records(GENERATION, told)
    assert run.has_records("t", GENERATION) and not run.has_records("t", LOGLIKELIHOOD)
    assert list(open_run(run.path).records()) == told
    run.close()


def test_file_that_is_not_records_is_named(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.write_records(GENERATION, [record("1")])
    file = run.path / "records" / "t.generation.jsonl"
    file.write_text(file.read_text() + '{"task": "t"}\n')
    with pytest.raises(UsageError) as error:
        list(run.records())
    assert f"{file.name}:2" in error.value.found[0]
    assert "delete that file" in error.value.mend[0]
    run.close()


# --- one process at a time ------------------------------------------------------------------------------------------


def hold(out: Path) -> subprocess.Popen[str]:
    arguments = [str(out), json.dumps(IDENTITY), MANIFEST.to_json()]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        with pytest.raises(UsageError) as error:
            begin(tmp_path)
        assert "another process" in error.value.asked and "lock" in error.value.found[0] and error.value.mend
        begin(tmp_path, limit=3).close()  # a run of another identity is free
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    begin(tmp_path).close()


def test_lock_is_let_go_on_close(tmp_path: Path) -> None:
    first = begin(tmp_path)
    with pytest.raises(UsageError):
        begin(tmp_path)
    first.close()
    begin(tmp_path).close()


def test_run_with_a_broken_manifest_keeps_no_lock(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.close()
    manifest = run.path / "manifest.json"
    manifest.write_text("{")
    with pytest.raises(UsageError) as error:
        begin(tmp_path)
    assert "manifest.json is not JSON" in error.value.found[0] and f"delete {manifest}" in error.value.mend[0]
    manifest.unlink()
    begin(tmp_path).close()


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError) as error:
        begin(tmp_path / "out")
    assert "cannot be written" in error.value.asked and "--out DIR" in error.value.mend[0]


# --- identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"checkpoint": "sha256:ab"},
        {"suite": "sha256:bc"},
        {"datasets": {"org/name": "sha256:cd"}},
        {"datasets": {}},
        {"limit": 5},
        {"asked": {**IDENTITY["asked"], "dtype": "bfloat16"}},
        {"asked": {**IDENTITY["asked"], "device": "cuda"}},
        {"versions": {**IDENTITY["versions"], "torch": "3"}},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_each_member_of_the_identity_makes_another_run(changed: dict[str, Any]) -> None:
    assert short_key({**IDENTITY, **changed}) != short_key(IDENTITY)


def test_run_key_does_not_hang_on_the_order_of_keys() -> None:
    assert short_key(dict(reversed(IDENTITY.items()))) == short_key(IDENTITY)
    assert len(short_key(IDENTITY)) == 12


def test_same_identity_continues_the_same_directory(tmp_path: Path) -> None:
    first = begin(tmp_path)
    first.update(settings={"device": "cpu"})
    first.close()
    second = begin(tmp_path)
    assert second.path == first.path and second.manifest.settings == {"device": "cpu"} and not second.manifest.complete
    second.update(complete=True)
    second.close()
    assert open_run(first.path).manifest.complete


@pytest.mark.parametrize("label", ["../../x", "a b/c", "", "...", "ü" * 5, "x" * 500, "-rf"])
def test_any_label_gives_a_directory_in_out(tmp_path: Path, label: str) -> None:
    run = begin(tmp_path / "out", label)
    assert run.path.parent == tmp_path / "out" and run.path.is_dir()
    assert not run.path.name.startswith((".", "-"))
    run.close()


# --- keys ---------------------------------------------------------------------------------------------------------


def test_an_option_at_its_default_changes_no_key() -> None:
    @dataclass(frozen=True)
    class Before:
        slots: int = 64

    @dataclass(frozen=True)
    class After:
        slots: int = 64
        cached: bool = False

    assert content_key(without_defaults(Before(8))) == content_key(without_defaults(After(8)))
    assert content_key(without_defaults(After(8, True))) != content_key(without_defaults(After(8)))


def test_a_log_likelihood_that_is_no_number_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    with pytest.raises(CheckpointError, match="not numbers"):
        journal.add([Answer("a", nats=float("nan"))])
    journal.close()
    assert (tmp_path / "j.jsonl").read_text() == ""
