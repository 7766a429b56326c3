"""Log-likelihood records are what plain lm-eval finds with its own `hf` model, item by item."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue.sources import FileItems
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.digests import canonical_json, sha256_text
from perplexity_lies.engines.base import Engine, EngineOptions, ScoreRequest
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.protocols.hygiene import quarantine
from perplexity_lies.record.records import ItemRecord, Status

NATS = 1e-4
"""Float32 sums over some thirty tokens in another batch shape."""

Ask = Callable[..., list[ItemRecord]]
Opened = Callable[[Path], Engine]


def plain_lm_eval(checkpoint: Path, suite: Suite, chat: bool, work: Path) -> list[dict[str, Any]]:
    """Samples of plain lm-eval, over a task YAML of the test's own."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    spec = suite.tasks[0].items
    assert isinstance(spec, FileItems)
    task = {
        "task": "plain",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(spec.path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    folder = work / "plain"
    folder.mkdir()
    (folder / "plain.yaml").write_text(yaml.safe_dump(task))
    with quarantine(work / "plain.log"):
        results = simple_evaluate(
            model="hf", model_args=f"pretrained={checkpoint},dtype=float32", tasks=["plain"], batch_size=1, device="cpu",
            task_manager=TaskManager(include_defaults=False, include_path=str(folder)), apply_chat_template=chat,
            bootstrap_iters=0, log_samples=True,
        )  # fmt: skip
    assert results is not None
    return sorted(results["samples"]["plain"], key=lambda sample: int(sample["doc_id"]))


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox"])
def test_records_equal_plain_lm_eval(
    model_type: str,
    chat: bool,
    tiny_checkpoint: Callable[..., Path],
    opened: Opened,
    items_suite: Callable[..., Suite],
    ask: Ask,
    tmp_path: Path,
) -> None:
    checkpoint = tiny_checkpoint(model_type, chat_template=True)
    suite = items_suite(8, chat_template=chat)
    ours = ask("loglikelihood", opened(checkpoint), suite)
    theirs = plain_lm_eval(checkpoint, suite, chat, tmp_path)
    assert [record.item for record in ours] == [sample["doc"]["id"] for sample in theirs] and len(ours) == 8
    assert {record.score for record in ours} <= {0.0, 1.0}
    for record, sample in zip(ours, theirs, strict=True):
        expected = [float(response[0][0]) for response in sample["resps"]]
        assert record.choice_loglikelihoods_nats == pytest.approx(expected, abs=NATS)
        assert record.choice_is_greedy == tuple(response[0][1] for response in sample["resps"])
        read = record.headline
        assert read.scores == {"acc": sample["acc"], "acc_norm": sample["acc_norm"]}
        assert record.score == sample["acc"] and read.metric == "acc" and record.status is Status.SCORED
        assert record.gold_index == sample["doc"]["gold"] and record.gold == sample["doc"]["choices"][record.gold_index]
        assert read.answer == record.choices[max(range(3), key=expected.__getitem__)]
        assert record.subject == sample["doc"]["subject"] and record.prompt == sample["doc"]["question"]
        assert read.extractor == f"lm-eval@{version('lm-eval')}"


def test_log_likelihood_is_the_definition(tiny_llama: Path, opened: Opened, items_suite: Any, ask: Ask) -> None:
    """Sum over the continuation's tokens of log softmax at the position before, one sequence at a time."""
    import torch

    engine = opened(tiny_llama)
    record = ask("loglikelihood", engine, items_suite(2))[1]
    for choice, found in zip(record.choices, record.choice_loglikelihoods_nats, strict=True):
        context, whole = engine.encode(record.prompt), engine.encode(f"{record.prompt} {choice}")
        with torch.inference_mode():
            logprobs = engine.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)  # type: ignore[attr-defined]
        expected = sum(float(logprobs[at - 1, whole[at]]) for at in range(len(context), len(whole)))
        assert found == pytest.approx(expected, abs=NATS)
    assert record.prompt_tokens == len(engine.encode(record.prompt)) and record.truncated_prompt_tokens == 0


def test_prompt_hash_leaves_the_chat_template_out(
    tiny_checkpoint: Callable[..., Path], opened: Opened, items_suite: Any, ask: Ask
) -> None:
    engine = opened(tiny_checkpoint("llama", chat_template=True))
    (record,) = ask("loglikelihood", engine, items_suite(1, chat_template=True))
    chat = canonical_json([{"role": "user", "content": record.prompt}])
    # lm-eval leaves out its delimiter after a template's generation prompt.
    assert record.prompt_sha256 == sha256_text(canonical_json([[chat, choice] for choice in record.choices]))


ODD = [
    {"id": "digits", "question": "42", "choices": ["1", "2"], "gold": 1, "target": "2"},
    {"id": "newline", "question": "ends in a newline\n", "choices": [" a", "b "], "gold": 0, "target": "a"},
    {"id": "jinja", "question": "{{ 1 + 1 }} {% if %} {# x #}", "choices": ["{{x}}", "'q'"], "gold": 0, "target": "x"},
    {"id": "separator", "question": "a\u2028b\x85c", "choices": ["['x']", '"y"'], "gold": 0, "target": "x"},
    {"id": "dates", "question": "2024-01-01", "choices": ["2024-01-01", "2025-01-01T00:00:00Z"], "gold": 0, "target": "2"},
    {"id": "empty", "question": "", "choices": ["a", "b"], "gold": 0, "target": "a"},
]  # fmt: skip


@pytest.mark.parametrize("only", [item["id"] for item in ODD])
def test_words_are_asked_as_written_on_both_rungs(
    only: str, tiny_llama: Path, opened: Opened, items_suite: Any, ask: Ask
) -> None:
    """Each alone, since a loader guesses types from the whole file."""
    (item,) = [item for item in ODD if item["id"] == only]
    suite = items_suite([item])
    engine = opened(tiny_llama)
    (ranked,) = ask("loglikelihood", engine, suite)
    assert (ranked.prompt, ranked.choices, ranked.gold_index) == (
        item["question"],
        tuple(item["choices"]),
        item["gold"],
    )
    (generated,) = ask("generation", engine, suite)
    assert (generated.prompt, generated.gold, generated.item) == (item["question"], item["target"], ranked.item)


def test_truncated_context_is_counted(learned_positions: Any, opened: Opened, items_suite: Any, ask: Ask) -> None:
    engine = opened(learned_positions("gpt2"))
    long = {"id": "long", "question": "x" * 100, "choices": ["ab", "c"], "gold": 0, "target": "ab"}
    short = {"id": "short", "question": "x", "choices": ["ab", "c"], "gold": 0, "target": "ab"}
    cut, whole = ask("loglikelihood", engine, items_suite([long, short]))
    # 100 tokens and " ab"; 48 fit beside the last one.
    assert cut.truncated_prompt_tokens == 100 + 3 - 49 and cut.prompt_tokens == 48 - 1
    assert whole.truncated_prompt_tokens == 0 and whole.prompt_tokens == 1
    assert all(nats < 0 for nats in cut.choice_loglikelihoods_nats)


def test_chat_template_that_is_not_there(tiny_llama: Path, opened: Opened, items_suite: Any, ask: Ask) -> None:
    with pytest.raises(UsageError) as error:
        ask("loglikelihood", opened(tiny_llama), items_suite(1, chat_template=True))
    assert "chat template" in error.value.asked and "chat_template: false" in error.value.mend[0]


def test_log_likelihoods_that_are_not_numbers(
    llama_copy: Path, items_suite: Any, ask: Ask, opened: Opened, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = llama_copy / "model.safetensors"
    tensors = load_file(weights)
    huge = {name: tensors[name] * 1e30 for name in ("model.norm.weight", "lm_head.weight")}
    save_file({**tensors, **huge}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        ask("loglikelihood", opened(llama_copy), items_suite(1))
    assert "not numbers" in error.value.asked and "--dtype" in error.value.mend[0]
    assert not (tmp_path / "loglikelihood.jsonl").exists()  # told when the engine opens


def test_empty_prompt_of_a_tokenizer_without_ends(llama_copy: Path, opened: Opened, items_suite: Any, ask: Ask) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (llama_copy / name).exists():
            settings = json.loads((llama_copy / name).read_text())
            kept = {k: v for k, v in settings.items() if k not in ("bos_token", "eos_token")}
            (llama_copy / name).write_text(json.dumps(kept))
    with pytest.raises(CheckpointError) as error:
        ask("loglikelihood", opened(llama_copy), items_suite([ODD[-1]]))
    assert "empty prompt" in error.value.asked and "eos_token" in error.value.mend[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("task: x\ntest_split: test\noutput_type: generate_until\n", "generate_until"),
        ("task: x\noutput_type: nonsense\n", "nonsense"),
        ("task: x\noutput_type: multiple_choice\ntest_split: none\n", ""),
        ("[1, 2]\n", ""),
    ],
)
def test_task_that_lm_eval_cannot_rank(
    text: str, found: str, tiny_llama: Path, opened: Opened, ask: Ask, tmp_path: Path
) -> None:
    more = "dataset_path: json\ndoc_to_text: a\ndoc_to_target: b\n" if text.startswith("task") else ""
    (tmp_path / "x.yaml").write_text(text + more)
    (tmp_path / "hub" / "o" / "d").mkdir(parents=True)
    (tmp_path / "hub" / "o" / "d" / "test.jsonl").write_text('{"a": "x", "b": "y"}\n')
    task = {
        "name": "own",
        "loglikelihood": {"lm_eval_file": "x.yaml", "dataset": "o/d", "metric": "acc", "item": "{{ a }}"},
        "generation": {"evalscope": "arc", "dataset": "o/d", "max_new_tokens": 4, "metric": "m", "item": "{{ a }}"},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [task]}))
    with pytest.raises(UsageError) as error:
        ask("loglikelihood", opened(tiny_llama), load_suite(tmp_path / "own.yaml"), data=tmp_path / "hub")
    assert "'own'" in error.value.asked and found in error.value.found[0] and error.value.mend


def test_engine_is_asked_once(tiny_llama: Path, items_suite: Any, ask: Ask) -> None:
    """A second run over the same journal makes no call of the engine and gives equal records."""
    from perplexity_lies.engines.torch import TorchEngine

    class Counting(TorchEngine):
        scored = 0

        def score(self, requests: Any, finished: Any = None) -> Any:
            type(self).scored += 1
            yield from super().score(requests, finished)

    engine = Counting(resolve(str(tiny_llama)), EngineOptions(device="cpu"))
    suite = items_suite(4)
    first = ask("loglikelihood", engine, suite)
    assert Counting.scored == 1
    assert ask("loglikelihood", engine, suite) == first and Counting.scored == 1
    assert (
        ScoreRequest(context_ids=(1,), continuation_ids=(2,)).key
        != ScoreRequest(context_ids=(1, 2), continuation_ids=()).key
    )
