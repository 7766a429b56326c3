"""Less of a suite: tasks by name, other seeds, greedy; and what then is said of it."""

from __future__ import annotations

import pytest

from perplexity_lies.catalogue.narrow import narrow
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import share_of_limit
from perplexity_lies.errors import UsageError
from perplexity_lies.record.manifest import SuiteFacts


def test_nothing_asked_changes_nothing() -> None:
    suite = load_suite("paper")
    assert narrow(suite) is suite
    assert narrow(suite, seeds="1,2,3") is suite and not suite.narrowed


def test_tasks_keep_the_suites_order_and_are_said() -> None:
    suite = load_suite("paper")
    found = narrow(suite, tasks="piqa, mmlu")
    assert (
        [task.name for task in found.tasks]
        == ["piqa", "mmlu"]
        == [t.name for t in narrow(suite, tasks="mmlu,piqa").tasks]
    )
    assert found.narrowed == ("2 of 16 tasks were asked",)
    assert found.digest != suite.digest and found.digest == narrow(suite, tasks="mmlu,piqa").digest


def test_a_task_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no task 'mmlu_redox'.*mmlu_redux"):
        narrow(load_suite("paper"), tasks="mmlu_redox")


def test_fewer_seeds_are_said_and_other_seeds_are_set() -> None:
    suite = load_suite("paper")
    one = narrow(suite, tasks="gsm8k", seeds="7")
    assert one.narrowed == ("1 of 16 tasks were asked", "1 of 3 seeds were asked")
    assert {getattr(own, "seeds", None) for own in one.tasks[0].rungs.values()} == {(7,)}
    four = narrow(suite, seeds="4,5,6,7")
    assert not four.narrowed and four.digest != suite.digest


@pytest.mark.parametrize("seeds", ["", "1,1", "01,1", "one", "1,,2", "-1", "1.5", "2147483649"])
def test_what_is_no_list_of_seeds_is_refused(seeds: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        narrow(load_suite("paper"), seeds=seeds)


def test_greedy_is_a_setting_not_a_part() -> None:
    suite = load_suite("paper")
    found = narrow(suite, greedy=True)
    generation = [task.rungs["generation"] for task in found.tasks]
    assert {(g.temperature, g.top_p, g.top_k, g.seeds) for g in generation} == {(0.0, 1.0, 0, (0,))}  # type: ignore[attr-defined]
    assert found.digest != suite.digest and not found.narrowed


def test_the_papers_settings() -> None:
    suite = load_suite("paper")
    shots = {
        task.name: own.num_fewshot  # type: ignore[attr-defined]
        for task in suite.tasks if (own := task.rungs["generation"]).num_fewshot  # type: ignore[attr-defined]
    }  # fmt: skip
    assert shots == {"mmlu": 5, "ceval": 5, "gsm8k": 4}
    for task in suite.tasks:
        own = task.rungs["generation"]
        sampling = (own.temperature, own.top_p, own.top_k, own.max_new_tokens, own.seeds)  # type: ignore[attr-defined]
        assert sampling == (0.7, 0.8, 20, 1024, (1, 2, 3)), task.name
    assert {task.name for task in suite.tasks if task.subjects == "benchmark"} == {
        "mmlu",
        "mmlu_redux",
        "ceval",
        "cmmlu",
        "bbh",
    }


@pytest.mark.parametrize(
    ("limit", "subjects", "share"),
    [(None, 57, (None, None)), (20, 57, (20, 1)), (57, 57, (57, 1)), (200, 57, (57, 3)), (20, 1, (1, 20))],
)
def test_a_limit_is_shared_by_the_subjects(
    limit: int | None, subjects: int, share: tuple[int | None, int | None]
) -> None:
    assert share_of_limit(limit, subjects) == share


def test_a_part_says_why() -> None:
    facts = SuiteFacts(name="s", digest="d", limit=20, narrowed=("1 of 3 seeds were asked",))
    assert facts.partial == ("at most 20 items per task were asked", "1 of 3 seeds were asked")
    assert SuiteFacts(name="s", digest="d").partial == ()
