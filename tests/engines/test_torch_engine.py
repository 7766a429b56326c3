"""The torch engine from a checkpoint directory: what it refuses, what it leaves alone, what it streams."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, GenerateRequest, ScoreRequest
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError, MissingError, PliesError, UsageError

TinyCheckpoint = Callable[..., Path]


def engine_of(path: Path, **options: Any) -> TorchEngine:
    return TorchEngine(resolve(str(path)), EngineOptions(**options))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), "1 tensors that the model needs and the files lack"),
        (lambda t: t.update({"extra.weight": torch.zeros(2)}), "1 tensors that the model has no place for"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(7)}), "model.norm.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(llama_copy: Path, change: Any, found: str) -> None:
    change_tensors(llama_copy, change)
    with pytest.raises(PliesError) as caught:
        engine_of(llama_copy)
    assert caught.value.exit_code == 3
    assert found in str(caught.value)


def test_an_unknown_architecture_is_refused(llama_copy: Path) -> None:
    config = json.loads((llama_copy / "config.json").read_text())
    (llama_copy / "config.json").write_text(json.dumps({**config, "model_type": "nobody_knows"}))
    with pytest.raises(CheckpointError, match="nobody_knows"):
        engine_of(llama_copy)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"device": "gpu"}, UsageError, "is not a device"),
        ({"dtype": "floot32"}, UsageError, "did you mean 'float32'"),
        ({"device": "cuda"}, MissingError, "sees no CUDA device"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a machine without a GPU lacks")
def test_options_that_cannot_be_had(
    tiny_llama: Path, options: dict[str, str], kind: type[PliesError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        engine_of(tiny_llama, **options)


def test_a_cpu_runs_in_float32_whatever_is_stored(tiny_checkpoint: TinyCheckpoint) -> None:
    engine = engine_of(tiny_checkpoint("qwen3", dtype="bfloat16"))
    assert engine.settings["dtype"] == "float32"
    assert engine.settings["shared_prefixes"] is True


def test_threads_are_given_back(tiny_llama: Path) -> None:
    torch.set_num_threads(2)
    engine = engine_of(tiny_llama)
    results = engine.score([ScoreRequest(context_ids=(1, 2), continuation_ids=(3,))])
    next(results)
    results.close()
    assert torch.get_num_threads() == 2


def test_equal_requests_are_computed_once(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama)
    scored = [r for b in engine.score([ScoreRequest(context_ids=(9, 8), continuation_ids=(7,))] * 5) for r in b]
    asked = [GenerateRequest(prompt="one", add_special_tokens=True, max_new_tokens=3)] * 5
    assert len(scored) == 1
    assert len([r for b in engine.generate(asked) for r in b]) == 1


def test_greedy_text_is_that_of_generate(tiny_checkpoint: TinyCheckpoint) -> None:
    """Through the tokenizer and the chat template, from a directory, against transformers alone."""
    path = tiny_checkpoint("qwen3", chat_template=True)
    engine = engine_of(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for text in ("Hello there", "two\nlines", "a"):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        whole = model.generate(**ids, max_new_tokens=24, do_sample=False)
        expected = tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        request = GenerateRequest(prompt=engine.render_chat(chat), add_special_tokens=False, max_new_tokens=24)
        (result,) = [r for b in engine.generate([request]) for r in b]
        assert result.text == expected
        assert result.prompt_tokens == ids["input_ids"].shape[1]


@pytest.mark.parametrize("decoding", ["in slots", "by length"])
def test_token_ids_are_those_of_generate(tiny_checkpoint: TinyCheckpoint, decoding: str) -> None:
    """Ids as they were generated, the end token included; decoded they give the text."""
    engine = engine_of(tiny_checkpoint("qwen3"), slots=3)
    engine.why_not_slots = "" if decoding == "in slots" else "not wanted here"
    prompts = ["Hello there", "two\nlines", "a", "Hello again", "of another length"]
    alone = {prompt: whole_reply(engine, prompt, 24) for prompt in prompts}
    end = alone["two\nlines"][5]
    engine.end_ids = frozenset([end])
    requests = [GenerateRequest(prompt=prompt, add_special_tokens=True, max_new_tokens=24) for prompt in prompts]
    found = {result.key: result for batch in engine.generate(requests) for result in batch}
    ended = 0
    for request in requests:
        ids, result = alone[request.prompt], found[request.key]
        expected = ids[: ids.index(end) + 1] if end in ids else ids
        assert result.token_ids == tuple(expected) and result.completion_tokens == len(expected)
        assert engine.tokenizer.decode(result.token_ids, skip_special_tokens=True) == result.text
        ended += result.finish_reason == "stop" and result.token_ids[-1] == end
    assert 0 < ended < len(prompts), "some replies must end at the end token, and some not"


def whole_reply(engine: TorchEngine, prompt: str, tokens: int) -> list[int]:
    """HF `generate`, greedy, without end tokens."""
    ids = torch.tensor([engine.encode(prompt, True)])
    with torch.no_grad():
        whole = engine.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=0,
        )
    return whole[0, ids.shape[1] :].tolist()


def test_token_ids_hold_the_stop_string_that_the_text_lacks(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama)
    free = GenerateRequest(prompt="Hello there", add_special_tokens=True, max_new_tokens=12)
    ((whole,),) = engine.generate([free])
    stop = engine.tokenizer.decode(whole.token_ids[2:4])
    ((result,),) = engine.generate([replace(free, stop=(stop,))])
    assert result.finish_reason == "stop_string"
    assert engine.tokenizer.decode(result.token_ids).startswith(result.text + stop)
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]


def test_prompts_beyond_a_position_table_are_refused_row_by_row(tiny_checkpoint: TinyCheckpoint) -> None:
    engine = engine_of(tiny_checkpoint("gpt2"))
    long, short = "x" * (engine.context_tokens + 5), "short"
    asked = [GenerateRequest(prompt=p, add_special_tokens=False, max_new_tokens=2) for p in (long, short)]
    results = {r.key: r for b in engine.generate(asked) for r in b}
    assert "positions" in results[asked[0].key].error and results[asked[0].key].token_ids == ()
    assert results[asked[1].key].error == ""


def test_rotary_prompts_beyond_the_stated_context_run_and_are_counted(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama)
    request = GenerateRequest(prompt="x" * (engine.context_tokens + 5), add_special_tokens=False, max_new_tokens=2)
    (result,) = [r for b in engine.generate([request]) for r in b]
    assert result.beyond_context_tokens == 5 + result.completion_tokens


def test_gpu_kernels_that_import_without_a_gpu_are_not_bound(tmp_path: Path) -> None:
    """A library as flash-linear-attention is without a GPU: it imports, and fails when it is called."""
    library = tmp_path / "fla"
    library.mkdir()
    (library / "__init__.py").write_text(
        "def chunk_gated_delta_rule(query, key, value, g, beta, **kwargs):\n    raise RuntimeError('0 active drivers')\n"
        "fused_recurrent_gated_delta_rule = chunk_gated_delta_rule\n"
    )
    script = textwrap.dedent("""
        import sys, torch, transformers
        from perplexity_lies.engines.loading import kernels_for
        import contextlib
        guard = kernels_for(torch.device("cpu")) if sys.argv[1] == "guarded" else contextlib.nullcontext()
        with guard:
            config = transformers.Qwen3NextConfig(
                vocab_size=50, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2,
                linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
                moe_intermediate_size=16, shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"])
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
        model(input_ids=torch.arange(3, 40)[None])
        assert sys.argv[1] != "guarded" or "fla" not in sys.modules
        import fla  # still importable for whoever wants it
    """)
    done = {}
    for how in ("plain", "guarded"):
        done[how] = subprocess.run(
            [sys.executable, "-c", script, how], env={"PYTHONPATH": str(tmp_path), "PATH": "", "HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True,
        )  # fmt: skip
    assert "0 active drivers" in done["plain"].stderr, "the trap is not there: this test shows nothing"
    assert done["guarded"].returncode == 0, done["guarded"].stderr
