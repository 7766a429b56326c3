"""Requests that an engine cannot answer rightly: one refused result each, with the reason, and the rest is answered."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import tokens
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, ScoreRequest
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError
from perplexity_lies.record.records import Status
from perplexity_lies.run import evaluate

from .conftest import score_alone


def engine_of(path: Path) -> TorchEngine:
    return TorchEngine(resolve(str(path)), EngineOptions(device="cpu"))


def scored(engine: Any, requests: list[ScoreRequest]) -> dict[str, Any]:
    return {result.key: result for batch in engine.score(requests) for result in batch}


def edit(path: Path, **changes: Any) -> Path:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
    return path.parent


@pytest.mark.parametrize(
    ("method", "library"), [({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
                            ({"quant_method": "gptq", "bits": 4}, "optimum")]
)  # fmt: skip
def test_a_library_that_quantised_weights_need_is_named_as_it_is_typed(
    llama_copy: Path, method: dict[str, Any], library: str
) -> None:
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    edit(llama_copy / "config.json", quantization_config=method)
    with pytest.raises(CheckpointError) as refused:
        engine_of(llama_copy)
    assert f"pip install '{library}" in str(refused.value) and "pip install -" not in str(refused.value.mend)


def test_what_a_training_run_left_in_the_tokenizer_file_changes_no_question(llama_copy: Path, tiny_llama: Path) -> None:
    """tokenizer.json may hold a cut on the right and a padding: neither log-likelihood nor generation uses them."""
    edit(
        llama_copy / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                 "pad_token": "<pad>"},
    )  # fmt: skip
    changed, plain = engine_of(llama_copy), engine_of(tiny_llama)
    text = "the river ran past the mill and under the old stone bridge"
    for special in (None, True, False):
        assert changed.encode(text, special) == plain.encode(text, special)
    assert len(plain.encode(text)) > 4


def test_generation_settings_of_a_checkpoint_change_no_reply(llama_copy: Path, tiny_llama: Path) -> None:
    """As lm-eval and evalscope ask for greedy replies, whatever generation_config.json would like."""
    odd = {"repetition_penalty": 1.7, "suppress_tokens": [10, 11], "min_new_tokens": 5, "forced_eos_token_id": 3, "num_beams": 4,
           "no_repeat_ngram_size": 2, "do_sample": True, "temperature": 0.3, "max_length": 9, "stop_strings": ["e"]}  # fmt: skip
    edit(llama_copy / "generation_config.json", **odd)
    asked = [GenerateRequest(prompt=text, add_special_tokens=True, max_new_tokens=12) for text in ("a b c", "the mill")]
    found = [[r for batch in engine_of(path).generate(asked) for r in batch] for path in (llama_copy, tiny_llama)]
    assert found[0] == found[1]


def test_an_answer_longer_than_the_context_is_refused(tiny_llama: Path) -> None:
    """lm-eval asserts that it fits; its last tokens alone are another answer. One that just fits is scored whole."""
    engine = engine_of(tiny_llama)
    most = engine.context_tokens
    fits = ScoreRequest(context_ids=(7, 8, 9), continuation_ids=tuple(5 + i % 200 for i in range(most)))
    over = ScoreRequest(context_ids=(7, 8, 9), continuation_ids=tuple(5 + i % 200 for i in range(most + 1)))
    bare = ScoreRequest(context_ids=(), continuation_ids=(5, 6))
    empty = ScoreRequest(context_ids=(5,), continuation_ids=())
    found = scored(engine, [over, fits, bare, empty])
    assert found[over.key].error == f"the answer has {most + 1} tokens and the context holds {most} of one"
    assert "comes before" in found[bare.key].error and "no token" in found[empty.key].error
    assert not any(found[request.key].failed for request in (over, bare, empty))
    nats, _ = score_alone(engine.model, fits, most)
    assert found[fits.key].continuation_tokens == most and not found[fits.key].error
    assert found[fits.key].loglikelihood_nats == pytest.approx(nats, rel=1e-6)
    assert list(engine.score([over], lambda key: True)) == []


def test_a_record_of_an_answer_that_does_not_fit_is_refused(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Not scored with chance credit: from the suite to the record, beside items whose answers fit."""
    path = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))
    edit(path / "config.json", max_position_embeddings=48)
    items = [
        {"id": f"q{i}", "question": f"Q{i}?", "choices": ["a", "b" * (80 if i < 3 else 4)], "gold": 0, "target": "a"}
        for i in range(5)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: s\ntasks:\n  - name: t\n    items: items.jsonl\n    rungs: [loglikelihood]\n    chat_template: false\n"
        "    metric: acc_norm\n"
    )
    run = evaluate(str(path), suite=suite, out=tmp_path / "out", quiet=True)
    found = {record.item: record for record in run.records([run.records_path("t", "loglikelihood")])}
    for i in range(5):
        record = found[f"q{i}"]
        assert record.status is (Status.REFUSED if i < 3 else Status.SCORED)
        assert ("tokens and the context holds" in record.error) == (i < 3)
        assert record.readings[0].score == 0.0 or i >= 3


def test_a_token_without_an_embedding_is_refused(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """A token was added to the tokenizer, behind the back of the checks of files, and the embedding was never resized."""
    path = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))
    checkpoint = resolve(str(path))
    content = json.loads((path / "tokenizer.json").read_text())
    rows = len(content["model"]["vocab"])
    added = {"id": rows, "content": "nice", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({**added, "special": False})
    (path / "tokenizer.json").write_text(json.dumps(content))
    engine = TorchEngine(checkpoint, EngineOptions(device="cpu", dtype="float32"))
    asked = [
        GenerateRequest(prompt=prompt, add_special_tokens=True, max_new_tokens=2) for prompt in ("a nice day", "a day")
    ]
    found = {result.key: result for batch in engine.generate(asked) for result in batch}
    said = f"the tokenizer gives token {rows} ('nice') and the checkpoint has embeddings for 0 to {rows - 1}"
    assert found[asked[0].key].error == said and not found[asked[0].key].failed
    assert found[asked[1].key].error == "" and found[asked[1].key].completion_tokens > 0
    requests = [ScoreRequest(context_ids=(5, 6), continuation_ids=(last,)) for last in (rows, -1, rows - 1)]
    results = scored(engine, requests)
    assert results[requests[0].key].error == said and "token -1" in results[requests[1].key].error
    assert results[requests[2].key].error == ""


@pytest.mark.parametrize("stated", [10**6, -1, "<|end|>", ["0"], True, 1.5])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_that_no_reply_can_end_at(llama_copy: Path, file: str, stated: Any) -> None:
    edit(llama_copy / "generation_config.json", eos_token_id=0)
    if file == "config.json":
        (llama_copy / "generation_config.json").unlink()
    edit(llama_copy / file, eos_token_id=stated)
    with pytest.raises(CheckpointError) as caught:
        engine_of(llama_copy)
    assert "eos_token_id" in str(caught.value)


def test_an_end_token_beyond_the_vocabulary_beside_a_good_one_is_left_out(llama_copy: Path) -> None:
    edit(llama_copy / "generation_config.json", eos_token_id=[0, 10**6])
    assert engine_of(llama_copy).end_ids == {0}


def test_end_tokens_come_from_the_first_that_states_them(tiny_llama: Path) -> None:
    class Held:
        def __init__(self, eos_token_id: Any = None) -> None:
            self.eos_token_id = eos_token_id

    assert tokens.end_ids(Held([1, 2]), Held(3), Held(4), 9) == {1, 2}
    assert tokens.end_ids(None, Held(3), Held(4), 9) == {3}
    assert tokens.end_ids(Held(), Held(), Held(4), 9) == {4}
    assert tokens.end_ids(None, None, Held(), 9) == frozenset()
    assert engine_of(tiny_llama).end_ids == {0}


def test_prompts_cut_to_nothing_are_refused(tiny_llama: Path) -> None:
    asked = [
        GenerateRequest(prompt="Hello", add_special_tokens=False, max_new_tokens=2, max_prompt_tokens=most)
        for most in (0, 2)
    ]
    found = {result.key: result for batch in engine_of(tiny_llama).generate(asked) for result in batch}
    assert found[asked[0].key].error == "the prompt has no tokens" and found[asked[0].key].truncated_tokens == 5
    assert found[asked[1].key].prompt_tokens == 2 and not found[asked[1].key].error


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tokens_beyond_the_context_are_counted(tiny_checkpoint: Callable[..., Path], family: str) -> None:
    """In slots, by length, and where the prompt is refused (GPT-2 has no positions there)."""
    engine = engine_of(tiny_checkpoint(family))
    for why in ("", "not wanted here"):
        engine.why_not_slots = why
        asked = GenerateRequest(
            prompt="x" * (engine.context_tokens + 3), add_special_tokens=False, max_new_tokens=2, seed=len(why)
        )
        ((result,),) = engine.generate([asked])
        assert bool(result.error) == (family == "gpt2")
        assert result.beyond_context_tokens == 3 + result.completion_tokens


@pytest.mark.parametrize("way", ["in slots", "by length"])
def test_a_prompt_that_contains_the_pad_token(tiny_checkpoint: Callable[..., Path], way: str) -> None:
    """HF `generate` hides the pad token's positions unless it is given a mask; with one it is the reference."""
    engine = engine_of(tiny_checkpoint("qwen3"))
    engine.why_not_slots = "" if way == "in slots" else "not wanted here"
    pad, lied = engine.model.config.pad_token_id, 0
    assert pad == 0
    prompts = ["Hello<|end|> there", "<|end|>a", "two<|end|><|end|>lines", "without", "at the end<|end|>"]
    asked = [GenerateRequest(prompt=prompt, add_special_tokens=False, max_new_tokens=12) for prompt in prompts]
    found = {result.key: result for batch in engine.generate(asked) for result in batch}
    for request in asked:
        ids = torch.tensor([engine.encode(request.prompt, False)])
        assert bool((ids == pad).any()) == ("<|end|>" in request.prompt)
        whole = {}
        for mask in ({"attention_mask": torch.ones_like(ids)}, {}):
            with torch.no_grad():
                made = engine.model.generate(
                    ids, **mask, max_new_tokens=12, do_sample=False, eos_token_id=[3], pad_token_id=pad
                )
            whole[bool(mask)] = tuple(made[0, ids.shape[1] :].tolist())
        told = whole[True]
        own = found[request.key].token_ids
        assert own == told[: len(own)] and (len(own) == len(told) or own[-1] in engine.end_ids)
        lied += whole[False] != told
        score = ScoreRequest(context_ids=tuple(ids[0].tolist()), continuation_ids=(9, 0, 7))
        nats, _ = score_alone(engine.model, score, engine.context_tokens)
        assert scored(engine, [score])[score.key].loglikelihood_nats == pytest.approx(nats, abs=1e-4)
    assert lied, "without a mask the reference must lie: this test shows nothing"
