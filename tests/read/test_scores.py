"""Scores of a run: items apart by task and rung, seeds averaged, what was not measured left out, and the same after JSON."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from perplexity_lies.checked import checked
from perplexity_lies.errors import UsageError
from perplexity_lies.read.scores import RungScores, Scores, item_table, scores_of
from perplexity_lies.record.records import ItemRecord, Reading, Status
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

SCORES = Scores(
    tasks={
        "sums": {
            LOGLIKELIHOOD: RungScores(items={"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, statuses={"scored": 4}),
            GENERATION: RungScores(
                items={"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0},
                statuses={"scored": 2, "unparsed": 1, "truncated": 1},
            ),
        },
        "facts": {LOGLIKELIHOOD: RungScores(items={"a": 0.0}, statuses={"scored": 1})},
    }
)


def test_items_of_different_tasks_stay_apart_and_each_counts_once() -> None:
    assert SCORES.items(LOGLIKELIHOOD) == {"sums/a": 1, "sums/b": 0, "sums/c": 1, "sums/d": 1, "facts/a": 0}
    assert SCORES.percent(LOGLIKELIHOOD) == 60 and SCORES.percent(GENERATION) == 25
    assert SCORES.rungs == (LOGLIKELIHOOD, GENERATION)


def test_a_line_for_each_task_with_what_became_of_its_replies() -> None:
    sums, facts = SCORES.lines()
    assert (sums.task, sums.items, sums.percent) == ("sums", 4, {LOGLIKELIHOOD: 75, GENERATION: 25})
    assert (sums.unparsed, sums.truncated) == (25, 25)
    assert (facts.percent, facts.unparsed, facts.truncated) == ({LOGLIKELIHOOD: 0}, None, None)


def test_a_rung_without_scores_has_no_average() -> None:
    facts = Scores(tasks={"facts": SCORES.tasks["facts"]})
    assert facts.rungs == (LOGLIKELIHOOD,)
    with pytest.raises(ValueError, match="generation"):
        facts.percent(GENERATION)
    with pytest.raises(ValueError, match="no item"):
        _ = RungScores(statuses={"errored": 3}).percent


def test_several_seeds_are_one_score_and_what_was_not_measured_is_none() -> None:
    made = [("a", 0, 1.0, Status.SCORED), ("a", 1, 0.0, Status.UNPARSED), ("b", 0, 0.0, Status.ERRORED)]
    records = [
        ItemRecord(
            task="facts", item=item, rung=GENERATION, seed=seed, prompt="", prompt_sha256="", gold="",
            readings=(Reading(extractor="x@1", status=status, score=score, metric="acc"),),
        )
        for item, seed, score, status in made
    ]  # fmt: skip
    found = scores_of(SimpleNamespace(records=lambda: records)).tasks["facts"][GENERATION]  # type: ignore[arg-type]
    assert found == RungScores(items={"a": 0.5}, statuses={"scored": 1, "unparsed": 1, "errored": 1})


def test_scores_are_the_same_after_json_and_a_score_outside_its_range_is_refused() -> None:
    raw = json.loads(json.dumps(dataclasses.asdict(SCORES)))
    assert checked(Scores, raw, "scores.json") == SCORES
    raw["tasks"]["sums"][GENERATION]["items"]["a"] = 1.5
    with pytest.raises(
        UsageError, match=r"scores.json: tasks.sums.generation.items.a should be less than or equal to 1"
    ):
        checked(Scores, raw, "scores.json")


def test_a_table_has_the_items_that_all_runs_share() -> None:
    short = Scores(tasks={"sums": {GENERATION: RungScores(items={"d": 1.0, "b": 1.0})}})
    items, table = item_table([SCORES, short], GENERATION)
    assert items == ["sums/b", "sums/d"]
    assert np.array_equal(table, [[0, 0], [1, 1]])
