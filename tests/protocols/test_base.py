"""What every rung holds items and scores against."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from perplexity_lies.engines.base import GenerateResult
from perplexity_lies.errors import UsageError, printable
from perplexity_lies.protocols.base import fill, item_name, refuse_scale
from perplexity_lies.protocols.evalscope_reviews import Pass, Question, record_of
from perplexity_lies.protocols.generation import Generation
from perplexity_lies.record.manifest import Rounding
from perplexity_lies.record.records import ItemRecord, Status


@pytest.mark.parametrize("template", ["{{ ind + '' }}", "{{ ind / 0 }}", "{{ nothing }}", "{{ ind"])
def test_a_template_that_does_not_fit_is_told(template: str) -> None:
    with pytest.raises(UsageError, match="does not fit the item"):
        fill(template, {"ind": 3}, "task 'a'")


def test_an_item_named_by_nothing_is_told() -> None:
    assert item_name("{{ a }} | {{ b }}", {"a": "x\n y", "b": 1}, "task 'a'") == "x y | 1"
    assert item_name("{{ a }}", {"a": "x" * 49}, "task 'a'").startswith("sha256-")
    with pytest.raises(UsageError, match="renders to an empty string") as error:
        item_name(" {{ a }} ", {"a": ""}, "task 'a'")
    assert error.value.mend == ("fields there: a",)


@pytest.mark.parametrize("score", [-3.2, 1.01, float("nan"), 20.0])
def test_a_metric_on_another_scale_is_refused(score: float) -> None:
    refuse_scale("a", "generation", "acc", 1.0)
    with pytest.raises(UsageError, match="not a score between 0 and 1"):
        refuse_scale("lambada", "loglikelihood", "perplexity", score)


REPLY = GenerateResult(key="k", text="9^9^9", finish_reason="stop", prompt_tokens=1, completion_tokens=1)


def reviewed(score: dict[str, Any] | None, reply: GenerateResult = REPLY) -> ItemRecord:
    context: Any = SimpleNamespace(rounding=Rounding())
    settings = Generation(metric="acc", max_new_tokens=4)
    wanted = Pass(task="gsm8k", settings=settings, seed=0, context=context, items=None)
    question = Question(
        subset="s", index=0, item="i", subject="", messages=[{"role": "user", "content": "q"}], target="1"
    )
    return record_of(question, reply, {"sample_score": {"score": score}} if score else None, wanted)


def test_a_reply_that_evalscope_cannot_score_is_that_items_own() -> None:
    """evalscope leaves a metric that raised, or ran out of time, out of the values and says so in the status."""
    from evalscope.api.metric import Score
    from evalscope.api.metric.scorer import ScoreStatus

    lost = Score(status=ScoreStatus.EXCLUDED, metadata={"acc": "error: timed out"}).model_dump(mode="json")
    record = reviewed(lost)
    assert (record.status, record.score) == (Status.ERRORED, 0.0) and "timed out" in record.error
    assert reviewed(Score(value={"acc": 1.0}, extracted_prediction="1").model_dump(mode="json")).score == 1.0
    with pytest.raises(UsageError, match="gives no metric 'acc'"):
        reviewed(Score(value={"exact": 1.0}).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("refusal", "failed", "status"), [("too long", False, Status.REFUSED), ("connection lost", True, Status.ERRORED)]
)
def test_a_reply_that_could_not_be_had(refusal: str, failed: bool, status: Status) -> None:
    reply = GenerateResult(
        key="k", text="", finish_reason="length", prompt_tokens=1, completion_tokens=0, error=refusal, failed=failed
    )
    found = reviewed({"value": {"acc": 1.0}}, reply)
    assert (found.status, found.score, found.error, found.finish_reason) == (status, 0.0, refusal, "")


def test_a_reply_without_a_review_is_errored() -> None:
    record = reviewed(None)
    assert record.status is Status.ERRORED and "no review" in record.error


def test_control_characters_are_spelled_out() -> None:
    error = UsageError("a\x1b[2Jb", found="c\x07\u009b", mend="line\n\ttab")
    assert str(error) == "a\\x1b[2Jb\n  found: c\\x07\\x9b\n  try  : line\n\ttab"
    assert printable("plain − “text” 文") == "plain − “text” 文"
