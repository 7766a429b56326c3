"""A run's replies read again: what changes in the records, what stays, and that nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.errors import UsageError
from perplexity_lies.extract import open_extractor
from perplexity_lies.record.manifest import CheckpointFacts, Manifest, RungFacts, SuiteFacts, TaskFacts
from perplexity_lies.record.records import ItemRecord, Reading, Status
from perplexity_lies.record.store import Run, open_run, reopen_run, start_run
from perplexity_lies.reread import reread
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

REPLIES = {"right": "answer : 7", "buried": "7 , that is", "wrong": "answer : 8", "mute": "who knows"}
LOST = {"lost": ""}
EXTRACT = r"answer : (\d+)"


def record(item: str, text: str, rung: str = GENERATION, **fields: Any) -> ItemRecord:
    """As a run writes it: under generation with the reading of the suite's pattern."""
    status = Status.REFUSED if item in LOST else Status.SCORED
    read = Reading(extractor="lm-eval@1", status=status, score=0.0, metric="acc")
    whole = {
        "task": "sums",
        "prompt": "3 + 4 = ?",
        "prompt_sha256": "0",
        "gold": "7",
        "finish_reason": "stop",
        **fields,
    }
    found = ItemRecord(item=item, rung=rung, text=text, readings=(read,), **whole)
    own = open_extractor("pattern", {"extract": EXTRACT})
    return replace(found, readings=(own.read(found),)) if rung == GENERATION else found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of one task on both rungs, with a reply that could not be had."""
    facts = CheckpointFacts(
        name="c", kind="local", digest="d", weights_digest="w", tokenizer_digest="t", config_digest="c"
    )
    rungs = {LOGLIKELIHOOD: RungFacts(metric="acc"), GENERATION: RungFacts(settings={"extract": EXTRACT})}
    manifest = Manifest(
        checkpoint=facts,
        suite=SuiteFacts(name="s", digest="d"),
        tasks=(TaskFacts(name="sums", rungs=rungs), TaskFacts(name="stock", rungs={GENERATION: RungFacts()})),
    )
    made = start_run(tmp_path / "runs", identity={}, manifest=manifest, label="s-c")
    made.write_records(GENERATION, [record(item, text) for item, text in {**REPLIES, **LOST}.items()])
    made.write_records(LOGLIKELIHOOD, [record("right", "", LOGLIKELIHOOD, choices=("7", "8"), gold_index=0)])
    made.close()
    return made


def by_item(run: Run) -> dict[str, ItemRecord]:
    return {found.item: found for found in open_run(run.path).records() if found.rung == GENERATION}


def test_a_reading_is_added_beside_the_headline(run: Run) -> None:
    before = by_item(run)
    (result,) = reread(run.path, "number")
    assert (result.task, result.rung, result.extractor) == ("sums", GENERATION, "number@1")
    assert (result.records, result.measured, result.found, result.before, result.after) == (5, 4, 3, 0.25, 0.5)
    assert "3 of 4 replies" in str(result) and "25.0 -> 50.0 %" in str(result)
    after = by_item(run)
    assert list(after) == list(before)
    for item, found in after.items():
        assert found.readings[:1] == before[item].readings and found.readings[1].extractor == "number@1"
    assert (after["buried"].score, after["buried"].readings[1].score) == (0.0, 1.0)
    assert after["lost"].readings[1].status is Status.REFUSED


def test_headline_enters_the_gaps_and_comes_back(run: Run) -> None:
    files = {path.name: path.read_bytes() for path in run.record_files()}
    reread(run.path, "number", headline=True)
    assert [found.score for found in by_item(run).values()] == [1.0, 1.0, 0.0, 0.0, 0.0]
    (result,) = reread(run.path, "pattern", headline=True)
    assert (result.before, result.after) == (0.5, 0.25) and result.extractor == "pattern@1"
    assert {len(found.readings) for found in by_item(run).values()} == {2}
    assert (run.path / "records" / "sums.loglikelihood.jsonl").read_bytes() == files["sums.loglikelihood.jsonl"]


def test_the_same_again_changes_no_byte(run: Run) -> None:
    reread(run.path, "strict")
    once = {path.name: path.read_bytes() for path in run.record_files()}
    reread(run.path, "strict")
    reread(run.path, "pattern")
    assert {path.name: path.read_bytes() for path in run.record_files()} == once


def test_another_pattern_stands_beside_the_suites_own(run: Run) -> None:
    (result,) = reread(run.path, r"pattern=(\d+)")
    assert result.extractor == r"pattern@1=(\d+)" and result.found == 3
    assert [reading.extractor for reading in by_item(run)["right"].readings] == ["pattern@1", r"pattern@1=(\d+)"]


BROKEN = {"numbr": "did you mean 'number'", "pattern=(a": "regular expression", "strict=1": "no argument"}


@pytest.mark.parametrize(("extractor", "said"), BROKEN.items())
def test_what_cannot_be_read_with_changes_nothing(run: Run, extractor: str, said: str) -> None:
    files = {path.name: path.read_bytes() for path in run.record_files()}
    with pytest.raises(UsageError, match=said):
        reread(run.path, extractor)
    assert {path.name: path.read_bytes() for path in run.record_files()} == files


def test_a_stock_task_has_no_pattern_of_its_own(run: Run) -> None:
    run.write_records(GENERATION, [record("right", "answer : 7", task="stock")])
    with pytest.raises(UsageError, match="needs a regular expression"):
        reread(run.path, "pattern")
    assert len(reread(run.path, r"pattern=(\d)")) == 2


def test_a_run_without_replies_is_told(run: Run) -> None:
    (run.path / "records" / "sums.generation.jsonl").unlink()
    with pytest.raises(UsageError, match="holds no replies") as error:
        reread(run.path, "strict")
    assert error.value.found and "plies evaluate" in error.value.mend[0]


def test_reading_again_needs_neither_torch_nor_an_evaluation_library(run: Run) -> None:
    heavy = ("torch", "transformers", "lm_eval", "evalscope", "datasets")
    program = (
        "import sys; from perplexity_lies.reread import reread; reread(sys.argv[1], 'last_letter');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run.path)], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
    assert by_item(run)["right"].readings[-1].extractor == "last_letter@1"


def test_a_run_that_is_being_written_is_not_read_again(run: Run) -> None:
    before = [path.read_bytes() for path in run.record_files()]
    writer = reopen_run(run.path)
    with pytest.raises(UsageError, match="being written by another process"):
        reread(run.path, "number")
    assert [path.read_bytes() for path in run.record_files()] == before
    writer.close()
    reread(run.path, "number")
    reopen_run(run.path).close()
