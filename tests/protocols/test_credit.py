"""Credit: what counts as an answer in a reply that was cut in a thought, and which answers a library's fallback rule read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, GenerateResult
from perplexity_lies.engines.replies import put_elsewhere, read_reply
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.extract.base import opened_thought, status_of
from perplexity_lies.record.records import FALLBACK, ItemRecord, Status

from .test_generation import stock_suite

Ask = Callable[..., list[ItemRecord]]


@pytest.fixture
def saying(tiny_llama: Path) -> Callable[[Sequence[tuple[str, str]]], Any]:
    """`saying([(text, finish_reason), ...])` -> an engine that replies so, request by request."""

    class Saying(TorchEngine):
        replies: Sequence[tuple[str, str]] = ()

        def generate(self, requests: Any, finished: Any = None) -> Iterator[list[GenerateResult]]:
            for request, (text, reason) in zip(requests, self.replies, strict=True):
                yield [
                    GenerateResult(
                        key=request.key, text=text, finish_reason=reason, prompt_tokens=3, completion_tokens=5,  # type: ignore[arg-type]
                        token_ids=(5,) * 5,
                    )
                ]  # fmt: skip

    def build(replies: Sequence[tuple[str, str]]) -> Any:
        engine = Saying(resolve(str(tiny_llama)), EngineOptions(device="cpu"))
        engine.replies = replies
        return engine

    return build


def test_cut_thoughts_and_fallbacks_of_a_stock_benchmark(saying: Any, ask: Ask, tmp_path: Path) -> None:
    """The reference is B each time. evalscope gives the first reply credit for the B of its thought."""
    engine = saying(
        [
            ("<think>\nOption A says less, so B", "length"),
            ("It cannot be A, so it is B", "stop"),
            ("<think> A? </think> ANSWER: B", "length"),
            ("Answer: b", "stop"),
        ]
    )
    cut, prose, asked, small = ask("generation", engine, stock_suite(tmp_path), data=tmp_path / "hub")
    assert (cut.status, cut.score, cut.headline.answer) == (Status.TRUNCATED, 0.0, "")
    assert cut.headline.scores["accuracy"] == 1.0, "what evalscope gave stays beside it"
    assert (prose.status, prose.score) == (Status.SCORED, 1.0) and prose.headline.rule.startswith(FALLBACK)
    assert (asked.status, asked.score, asked.headline.rule[:11]) == (Status.SCORED, 1.0, "in the form")
    assert (small.headline.answer, small.score) == ("A", 0.0) and small.headline.rule.startswith(FALLBACK)


def test_thought_that_the_template_opens(saying: Any, ask: Ask, items_suite: Any, llama_copy: Path) -> None:
    (llama_copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<think>\n")
    kind = type(saying([]))
    engine = kind(resolve(str(llama_copy)), EngineOptions(device="cpu"))
    engine.replies = [("is it 1 or 7", "length"), ("no </think> 7", "length"), ("is it 1", "stop")]
    cut, closed, ended = ask("generation", engine, items_suite(3, extract=r"(\d)"))
    assert (cut.status, cut.score, cut.reply_prefix) == (Status.TRUNCATED, 0.0, "<think>")
    assert (closed.status, closed.headline.answer) == (Status.SCORED, "7")
    assert ended.status is Status.SCORED, "it ended by itself"


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("<think> 7", "length", Status.TRUNCATED),
        ("<THINK> 7", "length", Status.TRUNCATED),
        ("<think> 7 </think> <think> 8", "length", Status.TRUNCATED),
        ("<seed:think>7", "length", Status.TRUNCATED),
        ("[THINK]7", "length", Status.TRUNCATED),
        ("<think> 7", "stop_string", Status.UNPARSED),
        ("<think> 7 </think> 7", "length", Status.SCORED),
        ("a? </think> 7", "length", Status.SCORED),
    ],
)
def test_no_answer_in_an_open_thought(text: str, reason: str, expected: Status) -> None:
    assert status_of(text, reason, "7") is expected


def test_a_prompt_that_opens_a_thought() -> None:
    assert opened_thought("<assistant>\n<think>\n") == "<think>"
    assert opened_thought("what does <think> mean?\n") == opened_thought("<think>\n\n</think>\n\n") == ""


def chat(content: Any, finish: str, **message: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": finish, "message": {"content": content, **message}}]}


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (chat(None, "length", reasoning_content="A, so"), Status.TRUNCATED, ""),
        (chat("", "length", reasoning="A, so"), Status.TRUNCATED, ""),
        (chat(None, "length"), Status.TRUNCATED, ""),
        (chat(None, "stop"), Status.DEGENERATE, ""),
        (chat(None, "stop", reasoning_content="A, so B"), None, "field for thoughts"),
        (chat(None, "stop", refusal="I cannot help"), None, "refused: I cannot help"),
        (chat("ANSWER: B", "stop", reasoning_content="A?", refusal=None), Status.SCORED, ""),
    ],
)
def test_what_a_server_put_into_another_field(content: Any, status: Status | None, why: str) -> None:
    """An error means that the item is `refused`: it does not pair."""
    assert why in put_elsewhere(content) and bool(why) == bool(put_elsewhere(content))
    text, reason = read_reply(content, ())
    if status is not None:
        assert status_of(text, reason, "B" if text.startswith("ANSWER") else "", known_tokens=False) is status
