"""Steps sum to the hidden gap and causes to the gap, on random records; each reply has the cause that was planted in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perplexity_lies.read.causes import (
    EMPTY,
    FRAGILE,
    LOOP,
    NO_ANSWER,
    OFF_LABEL,
    TRUNCATED,
    WRONG,
    cause_of,
    causes_of,
    ends_in_a_loop,
)
from perplexity_lies.read.numbers import OVERALL
from perplexity_lies.read.pairing import Paired
from perplexity_lies.read.waterfall import waterfalls
from perplexity_lies.record.records import ItemRecord, Reading, Status
from perplexity_lies.rungs import LADDER, trunk

ROUNDING = 1e-5
"""Estimates are rounded to six decimals of a percentage; a sum of eight of them is off by at most 4e-6."""


def paired(rng: Any, n: int, sides: int, *, seeds: int = 1) -> Paired:
    scores = rng.integers(0, seeds + 1, size=(n, sides)) / seeds
    return Paired(items=tuple(f"i{i:03}" for i in range(n)), subjects=("",) * n, scores=scores)


@pytest.mark.parametrize("seed", range(8))
def test_steps_sum_to_the_hidden_gap_for_any_records(seed: int) -> None:
    rng = np.random.default_rng(seed)
    by_task = [
        (task, {rung.name: paired(rng, int(rng.integers(2, 40)), 3, seeds=1 + seed % 3) for rung in LADDER})
        for task in ("a", "b")
    ]
    found = waterfalls(by_task, 3, {})
    assert {(fall.task, fall.side) for fall in found} == {(t, s) for t in ("a", "b", OVERALL) for s in (1, 2)}
    for fall in found:
        assert len(fall.steps) == len(trunk(rung.name for rung in LADDER)) - 1
        assert sum(step.gap.value for step in fall.steps) == pytest.approx(fall.hidden.value, abs=ROUNDING)
        for step in fall.steps:
            assert step.student.value - step.teacher.value == pytest.approx(step.gap.value, abs=ROUNDING)
            assert step.gap.low is not None and step.gap.low <= step.gap.value <= step.gap.high  # type: ignore[operator]


def test_a_step_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(5)
    pairs = {name: paired(rng, 30, 2) for name in ("rank_texts", "constrained", "argmax", "answer")}
    (fall, _) = waterfalls([("a", pairs)], 2, {})
    texts, held, last = (pairs[name].scores for name in ("rank_texts", "constrained", "answer"))
    gaps = [float((scores[:, 1] - scores[:, 0]).mean()) * 100 for scores in (texts, held, last)]
    assert fall.first.value == pytest.approx(gaps[0], abs=ROUNDING)
    assert fall.steps[0].gap.value == pytest.approx(gaps[1] - gaps[0], abs=ROUNDING)
    assert fall.hidden.value == pytest.approx(gaps[2] - gaps[0], abs=ROUNDING)
    cells = fall.matrix[-1]
    right = last >= 1
    assert (cells.lost, cells.gained) == ((right[:, 0] & ~right[:, 1]).sum(), (~right[:, 0] & right[:, 1]).sum())
    assert cells.both + cells.lost + cells.gained + cells.neither == 30


def test_only_items_that_pair_on_every_rung_of_the_path_enter() -> None:
    rng = np.random.default_rng(1)
    pairs = {"argmax": paired(rng, 9, 2), "answer": paired(rng, 6, 2)}
    fall, _ = waterfalls([("a", pairs)], 2, {})
    assert fall.hidden.n == 6
    assert waterfalls([("a", {"loglikelihood": pairs["argmax"], "generation": pairs["answer"]})], 2, {}) == ()


class Told:
    """A run directory that holds these records."""

    def __init__(self, records: list[ItemRecord]) -> None:
        self._records = records

    def records_path(self, task: str, rung: str) -> Any:
        class There:
            key = (task, rung)

            def exists(self) -> bool:
                return True

        return There()

    def records(self, paths: Any) -> Any:
        return [r for r in self._records if (r.task, r.rung) in [path.key for path in paths]]


def reply(text: str, *, item: str = "i", score: float = 0.0, **changes: Any) -> ItemRecord:
    reading = Reading(
        extractor="label@1", status=changes.pop("status", Status.SCORED), score=score, metric="exact_match"
    )
    values: dict[str, Any] = {
        "finish_reason": "stop",
        "choices": ("x", "y", "z"),
        "gold_index": 0,
        "gold": "A",
        **changes,
    }
    return ItemRecord(
        task="a", item=item, rung="answer", prompt="?", prompt_sha256="0", readings=(reading,), text=text, **values
    )


UNREAD = {"status": Status.UNPARSED}
CUT = {"status": Status.TRUNCATED, "finish_reason": "length"}
REPLIES = [
    (EMPTY, reply(" ", status=Status.DEGENERATE)),
    (LOOP, reply("fig pear fig pear fig pear", token_ids=(1, 2, 1, 2, 1, 2), **CUT)),
    (LOOP, reply("hahahahaha", token_ids=(7, *[4, 5] * 9), **CUT)),  # one word, a loop of tokens
    (TRUNCATED, reply("fig pear plum", token_ids=(1, 2, 3), **CUT)),
    (NO_ANSWER, reply("###A###", **UNREAD)),
    (OFF_LABEL, reply("soup", **UNREAD)),
    (OFF_LABEL, reply("E", **UNREAD)),
    (WRONG, reply("B")),
    (FRAGILE, reply("B", fragile=True)),
]


@pytest.mark.parametrize(("cause", "record"), REPLIES)
def test_a_reply_has_the_cause_that_is_in_it(cause: str, record: ItemRecord) -> None:
    assert cause_of(record) == cause


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2] * 3, True), ([1, 2] * 2, False), ([9, 8, 7] + [1, 2, 3] * 3, True), ([1, 2, 3] * 3 + [4], False),
        ([5] * 8, True), ([5] * 7, False), ([1, 1, 2] * 3, True), ([], False), (list(range(50)), False),
    ],
)  # fmt: skip
def test_a_loop_is_three_repeats_of_a_phrase_or_eight_of_a_token(tokens: list[int], loops: bool) -> None:
    assert ends_in_a_loop(tokens) is loops


@pytest.mark.parametrize("seed", range(6))
def test_causes_sum_to_the_gap_for_any_records(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = {"argmax": paired(rng, 30, 2), "answer": paired(rng, 30, 2)}
    own = pairs["answer"]
    runs = []
    for side in (0, 1):
        records = []
        for row, item in enumerate(own.items):
            _, like = REPLIES[int(rng.integers(len(REPLIES)))]
            score = float(own.scores[row, side])
            records.append(
                reply(like.text, item=item, score=score, status=Status.SCORED if score else like.status,
                      finish_reason=like.finish_reason, token_ids=like.token_ids, fragile=like.fragile)
            )  # fmt: skip
        runs.append(Told(records))
    found, overall = causes_of([("a", pairs)], runs, {})  # type: ignore[arg-type]
    difference = own.scores[:, 1] - own.scores[:, 0]
    assert overall.task == OVERALL
    assert found.gap.value == pytest.approx(100 * difference.mean(), abs=ROUNDING)
    assert sum(each.share.value for each in found.causes) == pytest.approx(found.gap.value, abs=ROUNDING)
    assert sum(each.lost for each in found.causes) == (difference < 0).sum()
    assert sum(each.gained for each in found.causes) == (difference > 0).sum()


def test_a_cause_that_only_gains_and_one_that_only_loses_keep_their_signs() -> None:
    scores = np.array([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 5 + [[1.0, 1.0]] * 32)
    own = Paired(items=tuple(f"i{i:02}" for i in range(40)), subjects=("",) * 40, scores=scores)
    runs = [
        Told(
            [
                reply("B" if score < 1 else "A", item=item, score=score)
                for item, score in zip(own.items, column, strict=True)
            ]
        )
        for column in scores.T
    ]
    for lost, gained in ((own, 0), (Paired(items=own.items, subjects=own.subjects, scores=scores[:, ::-1]), 1)):
        found = causes_of([("a", {"argmax": lost, "answer": lost})], runs[::-1] if gained else runs, {})[0]  # type: ignore[arg-type]
        (cause,) = found.causes
        assert (cause.lost, cause.gained) == ((3, 5) if gained else (5, 3))
        assert cause.share.value == found.gap.value == (5.0 if gained else -5.0)
        assert cause.share.low is not None and cause.share.low < cause.share.value
    ups = Paired(items=own.items[:3], subjects=own.subjects[:3], scores=scores[:3])
    (only, _) = causes_of([("a", {"argmax": ups, "answer": ups})], runs, {})  # type: ignore[arg-type]
    assert only.causes[0].share.value == 100.0
