"""Scores as the harness hands them in: read, averaged, and the same as the harness's own records say."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.measure import GENERATION, LOGLIKELIHOOD, by_item, percent, task_scores
from perplexity_lies.errors import MissingError
from perplexity_lies.in_the_loop import measurer
from perplexity_lies.record.records import ItemRecord, Status
from perplexity_lies.record.store import open_run

EMBEDDED = Path(__file__).parents[2] / "perplexity_lies" / "embedded"

SCORES = {
    "sums": {
        "loglikelihood": {"items": {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, "statuses": {"scored": 4}},
        "generation": {
            "items": {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0},
            "statuses": {"scored": 2, "unparsed": 1, "truncated": 1},
        },
    },
    "facts": {"loglikelihood": {"items": {"a": 0.0}, "statuses": {"scored": 1}}},
}  # fmt: skip


def test_items_of_different_tasks_stay_apart_and_each_counts_once() -> None:
    assert by_item(SCORES, LOGLIKELIHOOD) == {"sums/a": 1, "sums/b": 0, "sums/c": 1, "sums/d": 1, "facts/a": 0}
    assert percent(SCORES, LOGLIKELIHOOD) == 60 and percent(SCORES, GENERATION) == 25
    table = task_scores(SCORES)
    assert set(table) == {"sums"}
    assert (table["sums"].items, table["sums"].unparsed, table["sums"].truncated) == (4, 25, 25)


def test_a_protocol_that_was_not_asked_has_no_average() -> None:
    with pytest.raises(ValueError, match="generation"):
        percent({"facts": SCORES["facts"]}, GENERATION)


def test_several_seeds_are_one_score_and_what_was_not_measured_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [("a", 0, 1.0, Status.SCORED), ("a", 1, 0.0, Status.UNPARSED), ("b", 0, 0.0, Status.ERRORED)]
    records = [
        ItemRecord(
            task="facts", item=item, protocol=GENERATION, seed=seed, score=score, status=status, prompt="", prompt_sha256="",
            metric="acc", gold="",
        )
        for item, seed, score, status in made
    ]  # fmt: skip
    module = import_module("perplexity_lies.run")  # the package's own name of this is the function
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: SimpleNamespace(records=lambda: records))
    found = measurer(suite="miniature", out=tmp_path)(tmp_path)["facts"][GENERATION]
    assert found == {"items": {"a": 0.5}, "statuses": {"scored": 1, "unparsed": 1, "errored": 1}}


@pytest.mark.slow
def test_the_harness_in_the_loop_gives_what_its_records_say(tmp_path: Path) -> None:
    found = measurer(suite="miniature", out=tmp_path, limit=3)(EMBEDDED / "student")
    records = open_run(next((tmp_path / "runs").iterdir())).records()
    assert len(records) == 5 * 2 * 3
    for record in records:
        assert found[record.task][record.protocol]["items"][record.item] == record.score
    assert {task: line.items for task, line in task_scores(found).items()} == dict.fromkeys(found, 3)


def test_a_suite_whose_data_are_not_there_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        measurer(suite="smoke", out=tmp_path, data=tmp_path)
