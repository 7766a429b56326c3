"""The suite `long` through the rungs: a checkpoint that looks up is always right, one that guesses never, whatever the length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite
from perplexity_lies.engines.base import Engine, GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from perplexity_lies.record.records import ItemRecord, Status

from ..suites.looking_up import look_up

Ask = Callable[..., list[ItemRecord]]
LONG = load_suite("long")


def only(*names: str) -> Suite:
    """The suite with these tasks alone."""
    return replace(LONG, tasks=tuple(task for task in LONG.tasks if task.name in names))


class Scripted(Engine):
    """Reads its prompt by search (`answer`), and finds every letter its own token; ranks by the same search."""

    context_tokens = 1 << 22
    settings = {"engine": "scripted", "device": "none", "dtype": "float32"}
    has_chat_template = False
    tokenizer = None

    def __init__(self, answer: Callable[[str], list[str]]) -> None:
        self.answer = answer

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return [ord(letter) for letter in text]

    def render_chat(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return messages[-1]["content"]

    def score(self, requests: Sequence[ScoreRequest], finished: Any = None) -> Iterator[list[ScoreResult]]:
        for request in requests:
            context, choice = ("".join(map(chr, ids)) for ids in (request.context_ids, request.continuation_ids))
            found = sum(answer in choice for answer in self.answer(context))
            yield [
                ScoreResult(
                    key=request.key, loglikelihood_nats=float(found - 100), is_greedy=False,
                    context_tokens=len(context), continuation_tokens=len(choice),
                )
            ]  # fmt: skip

    def generate(self, requests: Sequence[GenerateRequest], finished: Any = None) -> Iterator[list[GenerateResult]]:
        for request in requests:
            text = " and ".join(self.answer(request.prompt))
            yield [
                GenerateResult(
                    key=request.key, text=text, finish_reason="stop", prompt_tokens=len(request.prompt),
                    completion_tokens=1, token_ids=(1,),
                )
            ]  # fmt: skip


def guess(prompt: str) -> list[str]:
    """Numbers of the right form, drawn without a look at the prompt."""
    rng = random.Random(len(prompt))
    return [str(rng.randrange(10**6, 10**7)) for _ in range(4)]


OWN = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")


@pytest.mark.parametrize(("rung", "length"), [("loglikelihood", 4096), ("generation", 4096), ("generation", 131072)])
def test_looking_up_is_always_right(rung: str, length: int, ask: Ask) -> None:
    suite = only(*(f"{task}_{length}" for task in OWN))
    assert len(suite.tasks) == len(OWN)
    records = ask(rung, Scripted(look_up), suite, limit=1)
    assert [record.score for record in records] == [1.0] * len(OWN)
    assert {record.status for record in records} == {Status.SCORED}
    assert [record.prompt for record in records] == [load(suite, record.task)[0].question for record in records]


def load(suite: Suite, name: str) -> Any:
    (task,) = (task for task in suite.tasks if task.name == name)
    assert task.items is not None
    return task.items.load(limit=1)


def test_guessing_is_never_right_when_generating(ask: Ask) -> None:
    records = ask("generation", Scripted(guess), only(*(f"{task}_4096" for task in OWN)), limit=3)
    assert [record.score for record in records] == [0.0] * 3 * len(OWN)
    assert {record.headline.metric for record in records} == {"string_match_all"}


class Spelling(Scripted):
    """With the tokenizer of a checkpoint."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(guess)
        self.tokenizer, self._engine = engine.tokenizer, engine

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return self._engine.encode(text, add_special_tokens)


def test_two_tokenizers_are_asked_the_same_bytes(
    ask: Ask, tiny_llama: Path, shared_models: Path, opened: Callable[[Path], Engine]
) -> None:
    suite = only("niah_multikey_2_4096", "cwe_4096")
    prompts, lengths = [], []
    for path in (tiny_llama, shared_models / "stories260K"):
        engine = Spelling(opened(path))
        records = ask("generation", engine, suite, limit=2)
        prompts.append([(record.item, record.prompt, record.prompt_sha256, record.gold) for record in records])
        lengths.append([len(engine.encode(record.prompt)) for record in records])
    assert prompts[0] == prompts[1]
    assert lengths[0] != lengths[1], "to the two checkpoints they are not equally long"
