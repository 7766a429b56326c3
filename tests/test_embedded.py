"""The embedded pair through the harness, against transformers alone: what `make demo` shows is what the checkpoints do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
import yaml

import perplexity_lies as plies
from distill.students import hybrid
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

ROOT = Path(__file__).parents[1]
LIMIT = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ItemRecord]]:
    out = tmp_path_factory.mktemp("embedded")
    found = {}
    for name in ("builtin:teacher", "builtin:student"):
        run = plies.evaluate(name, suite="miniature", out=out, limit=LIMIT, quiet=True)
        found[name] = list(run.records())
    return found


def tasks() -> dict[str, dict[str, object]]:
    suite = yaml.safe_load((ROOT / "suites" / "miniature.yaml").read_text())
    return {task["name"]: task for task in suite["tasks"]}


def item(record: ItemRecord) -> dict[str, object]:
    lines = (ROOT / "suites" / str(tasks()[record.task]["items"])).read_text().splitlines()
    return next(found for found in map(json.loads, lines) if found["id"] == record.item)


@pytest.mark.parametrize("name", ["builtin:teacher", "builtin:student"])
def test_records_are_what_transformers_says(runs: dict[str, list[ItemRecord]], name: str) -> None:
    """Greedy reply, extracted answer, score and log-likelihoods, each made again with nothing of the harness."""
    hybrid.register()
    path = resolve(name).path
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert len(runs[name]) == 2 * len(tasks()) * LIMIT
    for record in runs[name]:
        asked = item(record)
        chat = [{"role": "user", "content": asked["question"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if record.rung == GENERATION:
            task = tasks()[record.task]
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=task["max_new_tokens"], do_sample=False
            )
            text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
            answer = (re.findall(str(task["extract"]), text) or [""])[-1].strip()
            end = tokenizer.eos_token_id
            ids = whole[0, ids.shape[1] :].tolist()
            assert list(record.token_ids) == (ids[: ids.index(end) + 1] if end in ids else ids)
            assert (record.text, record.headline.answer, record.score) == (
                text,
                answer,
                float(answer == asked["target"]),
            )
            continue
        nats = []
        for choice in asked["choices"]:  # type: ignore[attr-defined]
            both = tokenizer(prompt + choice, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logprobs = model(input_ids=both[:, :-1]).logits[0].log_softmax(-1)
            new = both[0, ids.shape[1] :]
            nats.append(float(logprobs[-len(new) :].gather(-1, new[:, None]).sum()))
        assert record.choice_loglikelihoods_nats == pytest.approx(nats, abs=1e-3)
        assert record.score == float(nats.index(max(nats)) == asked["gold"])


def test_the_pair_agrees_by_loglikelihood_and_parts_by_generation(runs: dict[str, list[ItemRecord]]) -> None:
    """On the first items of each task, so the bars are wide; the whole is in the README."""

    def score(name: str, rung: str) -> float:
        found = [record.score for record in runs[name] if record.rung == rung]
        return sum(found) / len(found)

    assert score("builtin:teacher", LOGLIKELIHOOD) > 0.95 and score("builtin:teacher", GENERATION) > 0.95
    assert score("builtin:student", LOGLIKELIHOOD) > 0.85
    assert score("builtin:student", GENERATION) < score("builtin:student", LOGLIKELIHOOD) - 0.1


def test_answers_are_judged_to_the_letter(runs: dict[str, list[ItemRecord]]) -> None:
    """`N` for `n` is wrong: evalscope's own exact match would not see it."""
    from evalscope import TaskConfig
    from evalscope.api.registry import get_benchmark

    from perplexity_lies.extract.base import EXACT_MATCH
    from perplexity_lies.protocols.evalscope_door import ITEMS_BENCHMARK

    arguments = {ITEMS_BENCHMARK: {"local_path": "items", "extra_params": {"extract": "(.*)"}}}
    judge = get_benchmark(ITEMS_BENCHMARK, TaskConfig(model="none", datasets=[ITEMS_BENCHMARK], dataset_args=arguments))
    assert judge.match_score("key q N", "key q N", "key q n", None).value == {EXACT_MATCH: 0.0}
    assert judge.match_score("key q n", "key q n", "key q n", None).value == {EXACT_MATCH: 1.0}


def test_the_tasks_file_of_the_world_is_the_suite() -> None:
    told = json.loads((ROOT / "suites" / "miniature" / "tasks.json").read_text())
    assert {name: (task["extract"], task["max_new_tokens"]) for name, task in tasks().items()} == {
        name: (task["extract"], task["max_new_tokens"]) for name, task in told.items()
    }


def test_both_fit_in_ten_megabytes_and_have_cards() -> None:
    embedded = ROOT / "perplexity_lies" / "embedded"
    assert sum(path.stat().st_size for path in embedded.rglob("*") if path.is_file()) < 10_000_000
    for name in ("teacher", "student"):
        card = (embedded / name / "README.md").read_text()
        assert all(word in card for word in ("seed", "tokens", "wall", "aturated"))
