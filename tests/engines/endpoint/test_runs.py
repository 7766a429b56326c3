"""Whole runs against a served checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.engines import endpoint
from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.record.records import ItemRecord, Status
from perplexity_lies.run import evaluate
from perplexity_lies.rungs import GENERATION, HIDDEN_GAP, LOGLIKELIHOOD

from .client import NATS, QUICK
from .server import FOR_EVER, MODEL, Fault, Service, serving


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    items = [
        {"id": f"i{i}", "subject": "", "question": f"Item {i}: {i} and {i + 1}?", "gold": i % 3, "target": str(2 * i + 1),
         "choices": [str(2 * i + 1), f"{2 * i + 2} pears", "none of them"]}
        for i in range(5)
    ]  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {"name": "own", "items": "items.jsonl", "max_new_tokens": 6, "extract": r"(\d+)", "chat_template": False}
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [task]}))
    return folder / "own.yaml"


def by_item(records: list[ItemRecord]) -> dict[tuple[str, str], ItemRecord]:
    return {(record.rung, record.item): record for record in records}


def test_runs(service: Service, files: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rungs over a server: the torch engine's records, except for the items that the server cannot do."""
    monkeypatch.setattr(endpoint, "Patience", lambda: dataclasses.replace(QUICK, attempts=2))
    asked: dict[str, Any] = {"suite": suite, "out": tmp_path, "quiet": True}
    wanted = by_item(evaluate(str(files), device="cpu", dtype="float32", **asked).records())
    address = f"{service.url}#{MODEL}"

    service.faults = [
        Fault("dropped", holding="Item 4", times=FOR_EVER),
        Fault("500", holding="Item 2", times=FOR_EVER),
    ]
    run = evaluate(address, tokenizer=str(files), **asked)
    found = by_item(run.records())
    assert found.keys() == wanted.keys()
    for place, record in found.items():
        if place[1] in ("i2", "i4"):
            assert (record.status, record.score, record.headline.scores) == (Status.ERRORED, 0.0, {})
            assert record.error.endswith("after 2 attempts") and record.choice_loglikelihoods_nats == ()
            assert record.prompt_sha256 == wanted[place].prompt_sha256
            continue
        pairs = zip(record.choice_loglikelihoods_nats, wanted[place].choice_loglikelihoods_nats, strict=True)
        assert all(abs(here - there) < NATS for here, there in pairs)
        for name in ("prompt_sha256", "readings", "choices", "choice_is_greedy", "text", "gold"):
            assert getattr(record, name) == getattr(wanted[place], name)
        for name in ("finish_reason", "prompt_tokens", "completion_tokens", "error"):
            assert getattr(record, name) == getattr(wanted[place], name)
    assert run.manifest.checkpoint.kind == "endpoint" and run.manifest.rungs == (LOGLIKELIHOOD, GENERATION)
    assert run.manifest.engine["engine"] == "endpoint"

    service.faults = []
    service.asked.clear()
    again = evaluate(address, tokenizer=str(files), **asked)
    assert again.path == run.path and {record.error for record in again.records()} == {""}, "what failed is asked again"
    prompts = [service.text_of(body) for _, body, _ in service.asked]
    assert any("Item 4" in prompt for prompt in prompts) and not any("Item 1" in prompt for prompt in prompts)


def test_a_run_goes_on_where_the_server_left_it(
    service: Service, files: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "Patience", lambda: dataclasses.replace(QUICK, attempts=1))
    asked: dict[str, Any] = {"suite": suite, "out": tmp_path, "quiet": True, "tokenizer": str(files)}
    service.faults = [Fault("503", holding=f"Item {i}", times=FOR_EVER) for i in (1, 3)]
    service.faults += [Fault("dropped", holding=f"Item {i}", times=FOR_EVER) for i in (4,)]
    stop_answering_after(service, 9)
    with pytest.raises(MissingError, match="no longer answers"):
        evaluate(f"{service.url}#{MODEL}", **asked)
    service.faults = []
    run = evaluate(f"{service.url}#{MODEL}", **asked)
    assert {record.error for record in run.records()} == {""}


def stop_answering_after(service: Service, count: int) -> None:
    """From the `count`th request on every connection is dropped."""
    take = service.take_fault

    def counted(prompt: str) -> Fault | None:
        if len(service.asked) >= count and service.faults:
            return Fault("dropped")
        return take(prompt)

    service.take_fault = counted  # type: ignore[method-assign]


def test_generation_alone(
    torch_engine: Any, files: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without log-probabilities: refused on both rungs, run on one, and both run and comparison say so."""
    from perplexity_lies.read.compare import compare_runs
    from reports.html import write

    asked: dict[str, Any] = {"suite": suite, "out": tmp_path, "quiet": True}
    with serving(torch_engine, echoes=False) as service:
        address = f"{service.url}#{MODEL}"
        with pytest.raises(MissingError, match="cannot be asked under log-likelihood") as caught:
            evaluate(address, tokenizer=str(files), **asked)
        assert "the reply has no log-probabilities" in caught.value.found[0]
        assert "--rungs generation" in caught.value.mend[0]
        known = evaluate(address, tokenizer=str(files), rungs=GENERATION, **asked)
        chats = evaluate(address, rungs=GENERATION, **asked)
    assert {record.rung for record in known.records()} == {GENERATION} == set(chats.manifest.rungs)
    assert [record.text for record in known.records()] == [record.text for record in chats.records()]
    with pytest.raises(UsageError, match="there is no rung 'generatoin'"):
        evaluate(str(files), rungs="generatoin", **asked)
    comparison = compare_runs(known.path, chats.path)
    kinds = [caution.kind for caution in comparison.cautions]
    assert kinds.count("weights") == 2 and kinds.count("rung") == 2 and "same checkpoint" not in kinds
    (row,) = comparison.tasks
    assert list(row.rungs) == [GENERATION] and row.contrast(HIDDEN_GAP.name) is None
    page = write(comparison, tmp_path / "report.html") or tmp_path / "report.html"
    assert "are not fingerprinted" in Path(page).read_text(encoding="utf-8")
