"""The ladder: adjacent rungs differ in one factor, shown on the token ids that the engine is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.catalogue.items import Item
from perplexity_lies.catalogue.ladder import ladder_of
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import rung_class
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.protocols.ladder import asked_of, generate_request, score_requests
from perplexity_lies.record.records import Status
from perplexity_lies.run import evaluate
from perplexity_lies.rungs import LADDER, RUNGS, trunk

ITEMS = [
    Item(id=name, question=f"Which is {name}?", choices=("fig", "pear", name), gold=2, target=name)
    for name in ("plum", "kiwi", "lime", "date")
]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Any:
    return open_engine("torch", resolve(str(tiny_checkpoint("llama", chat_template=True))), EngineOptions(device="cpu"))


def factors(engine: Any, rung: str) -> dict[str, Any]:
    """What the engine is sent for one item, taken apart."""
    settings = rung_class(rung)(metric="acc", shots=2)  # type: ignore[call-arg]
    asked = asked_of(engine, settings, ITEMS[0], ITEMS)  # type: ignore[arg-type]
    if not RUNGS[rung].replies:
        requests = score_requests(engine, asked)
        (prompt_ids,) = {request.context_ids for request in requests}
        texts = tuple(engine.tokenizer.decode(request.continuation_ids) for request in requests)
        found = {"ids": prompt_ids, "compared": texts, "token by token": False, "held": True, "budget": 0}
    else:
        request = generate_request(engine, asked)
        ids = tuple(engine.encode(request.prompt, request.add_special_tokens))
        found = {"ids": ids, "compared": tuple(f" {text}" for text in asked.candidates), "token by token": True,
                 "held": bool(request.choices), "budget": request.max_new_tokens}  # fmt: skip
    return found


SHOULD_CHANGE = {
    "rank_letters": {"compared"},
    "constrained": {"token by token", "budget"},  # a reply has a budget, here no more than a label takes
    "argmax": {"held"},
    "answer": {"budget"},
    "answer_shots": {"ids"},
    "thought": {"ids", "budget"},  # the instruction to think, and room for it
    "answer_chat": {"ids"},
    "thought_chat": {"ids", "budget"},
}


def test_adjacent_rungs_differ_in_one_factor_of_what_is_sent(engine: Any) -> None:
    changes = {}
    for rung in LADDER:
        if rung.after:
            below, here = factors(engine, rung.after), factors(engine, rung.name)
            changes[rung.name] = {name for name in here if here[name] != below[name]}
    assert changes == SHOULD_CHANGE


def test_what_changes_in_the_prompt_is_the_factor_and_nothing_else(engine: Any) -> None:
    def text(rung: str) -> str:
        return str(engine.tokenizer.decode(factors(engine, rung)["ids"]))

    plain = text("answer").removeprefix("<|begin|>")
    assert plain == "Which is plum?\nA. fig\nB. pear\nC. plum\nAnswer:"
    assert text("answer_chat") == f"<|user|>{plain}<|end|><|assistant|>"
    worked = "Which is kiwi?\nA. fig\nB. pear\nC. kiwi\nAnswer: C\n\n"
    worked += "Which is lime?\nA. fig\nB. pear\nC. lime\nAnswer: C\n\n"
    assert text("answer_shots").removeprefix("<|begin|>") == worked + plain
    thought = text("thought").removeprefix("<|begin|>")
    assert thought.startswith(plain.removesuffix("Answer:")) and "step by step" in thought
    assert text("thought_chat") == f"<|user|>{thought}<|end|><|assistant|>"


def test_the_trunk_leads_from_ranked_texts_to_a_thought_in_chat() -> None:
    assert [rung.name for rung in trunk(RUNGS)] == [
        "rank_texts", "rank_letters", "constrained", "argmax", "answer", "answer_chat", "thought_chat"
    ]  # fmt: skip
    assert [rung.name for rung in trunk(["rank_texts", "constrained", "argmax", "answer"])][-1] == "answer"
    assert trunk(["loglikelihood", "generation"]) == []


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "q.jsonl").write_text(
        "".join(
            json.dumps({"id": i.id, "question": i.question, "choices": i.choices, "gold": i.gold, "target": i.target})
            + "\n"
            for i in ITEMS
        )
    )
    (tmp_path / "q.yaml").write_text("name: q\ntasks: [{name: q, items: q.jsonl, extract: '(.*)', max_new_tokens: 4,\n"
                                     "  ladder: {thought_tokens: 6, shots: 1}}]\n")  # fmt: skip
    return tmp_path / "q.yaml"


def test_an_items_task_is_asked_on_every_rung_by_one_call_of_each_kind(
    own: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = str(tiny_checkpoint("llama", chat_template=True))
    run = evaluate(path, suite=own, ladder=True, device="cpu", out=tmp_path / "o", quiet=True)
    records = list(run.records())
    assert {record.rung for record in records} == {rung.name for rung in LADDER}
    by = {(record.item, record.rung): record for record in records}
    for item in ITEMS:
        held, argmax, free = (by[item.id, rung] for rung in ("constrained", "argmax", "answer"))
        assert held.headline.answer in ("A", "B", "C")
        assert argmax.label_mass == held.label_mass is not None
        assert free.token_ids[: len(argmax.token_ids)] == argmax.token_ids
        assert {held.prompt_sha256, argmax.prompt_sha256, free.prompt_sha256} == {
            by[item.id, "rank_texts"].prompt_sha256
        }
        assert held.gold == "C"
    assert {file.name.partition(".")[0] for file in (run.path / "responses").iterdir()} == {"ranked", "decoded"}


def test_a_rung_that_a_checkpoint_lacks_says_so(own: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run = evaluate(
        str(tiny_llama),
        suite=own,
        ladder=True,
        rungs="answer_chat,answer",
        device="cpu",
        out=tmp_path / "o",
        quiet=True,
    )
    refused = [record for record in run.records() if record.rung == "answer_chat"]
    assert {(record.status, record.error) for record in refused} == {
        (Status.REFUSED, "the checkpoint has no chat template")
    }


def test_a_suite_of_own_words_has_the_rungs_that_make_sense() -> None:
    suite = ladder_of(load_suite("miniature"), Mirror(None))
    assert all(tuple(task.rungs) == ("rank_texts", "constrained", "argmax", "answer") for task in suite.tasks)
    assert suite.digest != load_suite("miniature").digest
