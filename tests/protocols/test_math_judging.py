"""evalscope's mathematics in one child: the same answers, verdicts and errors as in a child a call."""

from __future__ import annotations

import time

import pytest
from evalscope.metrics.math import parser

from perplexity_lies.protocols.math_judging import warm_child

REPLIES = [
    ("The answer is \\boxed{18}.", "18"), ("ANSWER: 1,234", "1234"), ("\\boxed{\\frac{1}{2}}", "0.5"), ("so 3/4", "0.75"),
    ("about 1e3 dollars", "1000"), ("\\boxed{\\$12.50}", "12.5"), ("\\boxed{50\\%}", "50"), ("no number at all", "7"),
    ("", "7"), ("\\boxed{", "7"), ("\\boxed{" + "9" * 400 + "}", "9" * 400), ("10 apples and 7 pears", "7"),
    ("\\boxed{\\sqrt{2}^2}", "2"), ("\\boxed{x = 5}", "5"), ("\\boxed{1/0}", "1"), ("\u0663", "3"), ("$-5$", "-5"),
]  # fmt: skip


def outcome(reply: str, reference: str) -> object:
    try:
        answer = parser.extract_answer(reply)
        return answer, parser.compare_answers(answer, reference)
    except Exception as error:
        return type(error), str(error)


def test_answers_and_verdicts_are_evalscopes() -> None:
    stock = [outcome(*pair) for pair in REPLIES]
    before = parser.run_isolated
    with warm_child(parser):
        assert parser.run_isolated is not before
        assert [outcome(*pair) for pair in REPLIES] == stock
    assert parser.run_isolated is before


def test_an_expression_that_hangs_is_ended_and_the_next_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "MATH_DEADLINE_S", 1)
    with warm_child(parser):
        assert outcome("\\boxed{4}", "4")
        begun = time.monotonic()
        with pytest.raises(parser.MathEvaluationError, match="deadline"):
            parser.compare_answers("9^{9^{9^{9}}}-1", "\\prod_{i=1}^{99999999} i")
        assert time.monotonic() - begun < 10
        assert outcome("\\boxed{4}", "4")[1].matched  # type: ignore[index]
