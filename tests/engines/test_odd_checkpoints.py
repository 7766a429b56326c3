"""Checkpoints that real saves leave behind: old buffers, flags of the training machine, FP8 blocks, eyes, odd templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, ScoreRequest
from perplexity_lies.engines.leftovers import is_causal_mask
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError

ASKED = ScoreRequest(context_ids=(70, 80, 90, 100), continuation_ids=(75, 85))

Tensors = dict[str, torch.Tensor]


def opened(directory: Path, dtype: str = "auto") -> TorchEngine:
    return TorchEngine(resolve(str(directory)), EngineOptions(device="cpu", dtype=dtype))


def nats(engine: TorchEngine) -> float:
    ((result,),) = list(engine.score([ASKED]))
    return result.loglikelihood_nats


def edit(directory: Path, file: str = "config.json", **changes: Any) -> None:
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def store(directory: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_masks_of_old_saves_are_let_through(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_checkpoint("gpt2")
    directory = Path(shutil.copytree(source, tmp_path / "old"))
    mask = torch.tril(torch.ones(1, 1, 64, 64, dtype=torch.bool))
    old = {"transformer.h.0.attn.bias": mask, "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    store(directory, lambda tensors: tensors.update(old))
    assert nats(opened(directory)) == nats(opened(source))


@pytest.mark.parametrize("bias", [torch.zeros(32), torch.ones(4, 4), torch.randn(1, 1, 8, 8)])
def test_a_bias_that_is_no_mask_is_not_dropped(llama_copy: Path, bias: torch.Tensor) -> None:
    store(llama_copy, lambda tensors: tensors.update({"model.layers.0.self_attn.bias": bias}))
    with pytest.raises(CheckpointError, match="disagree") as caught:
        opened(llama_copy)
    assert "model.layers.0.self_attn.bias" in caught.value.found[0]


def test_what_a_causal_mask_is() -> None:
    assert is_causal_mask(torch.tril(torch.ones(4, 4))) and is_causal_mask(torch.eye(4, dtype=torch.bool)[None, None])
    for other in (
        torch.ones(4, 4),
        torch.zeros(4, 4),
        torch.tensor(1.0),
        torch.ones(4),
        torch.tril(torch.ones(4, 4)) * 2,
    ):
        assert not is_causal_mask(other)


@pytest.mark.parametrize(
    "left",
    [
        {"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_2"},
        {"attn_implementation": "kernels-community/flash-attn3"},
        {"return_dict": False, "output_hidden_states": True, "use_cache": False},
        {"output_attentions": True},
    ],
)
def test_what_a_training_machine_left_in_the_config(llama_copy: Path, tiny_llama: Path, left: dict[str, Any]) -> None:
    edit(llama_copy, **left)
    engine, plain = opened(llama_copy), opened(tiny_llama)
    assert abs(nats(engine) - nats(plain)) < 1e-5
    assert engine.settings["attention"] in ("sdpa", "eager")


def in_blocks(directory: Path, size: int) -> Callable[[], None]:
    """Quantise the MLPs of a checkpoint in FP8 blocks; the function returned turns them back by the definition."""
    whole = load_file(directory / "model.safetensors")
    found, back = dict(whole), dict(whole)
    for name, weight in whole.items():
        if ".mlp." in name and name.endswith(".weight"):
            grid = [-(-extent // size) for extent in weight.shape]
            scales = torch.rand(grid) / 100 + 0.01
            spread = scales.repeat_interleave(size, 0).repeat_interleave(size, 1)[: weight.shape[0], : weight.shape[1]]
            found[name] = (weight / spread).to(torch.float8_e4m3fn)
            found[f"{name}_scale_inv"] = scales
            back[name] = found[name].float() * spread
    save_file(found, directory / "model.safetensors", metadata={"format": "pt"})
    kept = ["lm_head", *(f"model.layers.{i}.self_attn" for i in range(2))]
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [size, size]}
    edit(directory, quantization_config={**told, "modules_to_not_convert": kept})

    def turn_back() -> None:
        save_file(back, directory / "model.safetensors", metadata={"format": "pt"})
        edit(directory, quantization_config=None)

    return turn_back


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_fp8_blocks_on_a_cpu(tiny_checkpoint: Callable[..., Path], tmp_path: Path, stored: str) -> None:
    directory = Path(shutil.copytree(tiny_checkpoint("llama", dtype=stored), tmp_path / "fp8"))
    turn_back = in_blocks(directory, 16)
    found = {dtype: nats(opened(directory, dtype)) for dtype in ("auto", "float32", "bfloat16")}
    turn_back()
    wanted = nats(opened(directory, "float32"))
    assert abs(found["auto"] - wanted) < 1e-5 and found["float32"] == found["auto"]
    assert abs(found["bfloat16"] - wanted) < 0.3, "bfloat16 rounds to 8 bits"


def test_fp8_with_a_partial_last_block_is_refused(llama_copy: Path) -> None:
    """64 rows in blocks of 48: two scales, and transformers would take two blocks of 32."""
    in_blocks(llama_copy, 48)
    with pytest.raises(CheckpointError, match="cannot be turned back from FP8") as caught:
        opened(llama_copy)
    assert "64 rows or columns in blocks of 48" in caught.value.found[0]


def test_a_library_that_a_quantisation_needs_is_named(llama_copy: Path) -> None:
    edit(llama_copy, quantization_config={"quant_method": "compressed-tensors", "format": "float-quantized"})
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        opened(llama_copy)
    assert "compressed-tensors" in caught.value.mend[0]


def test_a_model_with_eyes_is_asked_in_text(tiny_llama: Path, tmp_path: Path) -> None:
    text = json.loads((tiny_llama / "config.json").read_text())
    eyes = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.AutoConfig.for_model("llava", text_config=text, vision_config=eyes, image_token_index=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaForConditionalGeneration(config).eval()
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "eyes"))
    model.save_pretrained(directory)
    ids = torch.tensor([[*ASKED.context_ids, *ASKED.continuation_ids]])
    with torch.inference_mode():
        logs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    wanted = float(logs[3, ASKED.continuation_ids[0]] + logs[4, ASKED.continuation_ids[1]])
    assert abs(nats(opened(directory)) - wanted) < 1e-4


def test_a_stored_head_counts_although_the_config_says_tied(llama_copy: Path, tiny_llama: Path) -> None:
    edit(llama_copy, tie_word_embeddings=True)
    assert nats(opened(llama_copy)) == nats(opened(tiny_llama))
    store(llama_copy, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert nats(opened(llama_copy)) != nats(opened(tiny_llama))


def test_an_end_token_that_nobody_stated_is_never_looked_up(llama_copy: Path) -> None:
    """50256 is what transformers writes for GPT-2's family: the tokenizer's own end token ends replies."""
    for file in ("config.json", "generation_config.json"):
        edit(llama_copy, file, eos_token_id=50256)
    assert opened(llama_copy).end_ids == {0}


@pytest.mark.parametrize(
    ("file", "content", "asked", "mend"),
    [
        ("chat_template.jinja", "", "an empty chat template", "rm "),
        ("chat_template.jinja", " \n", "an empty chat template", "rm "),
        ("tokenizer_config.json", "", "an empty chat template", "take chat_template out"),
        ("tokenizer_config.json", [{"name": "rag", "template": "x"}], "none for plain chats", "one of them default"),
        ("additional_chat_templates/rag.jinja", "x", "none for plain chats", "default"),
        ("chat_template.jinja", "{# nothing #}", "leaves out what the user says", "as text"),
        (
            "chat_template.jinja",
            "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}",
            "leaves out what the user says",
            "as text",
        ),
    ],
)
def test_templates_that_say_nothing(llama_copy: Path, file: str, content: Any, asked: str, mend: str) -> None:
    if file.endswith(".json"):
        edit(llama_copy, file, chat_template=content)
    else:
        (llama_copy / file).parent.mkdir(exist_ok=True)
        (llama_copy / file).write_text(content)
    with pytest.raises(CheckpointError, match=asked) as caught:
        opened(llama_copy)
    assert mend in caught.value.mend[0]


def test_two_templates_that_differ_are_told(llama_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (llama_copy / "chat_template.jinja").write_text("A{{ messages[0]['content'] }}")
    edit(llama_copy, "tokenizer_config.json", chat_template="B{{ messages[0]['content'] }}")
    assert opened(llama_copy).render_chat([{"role": "user", "content": "x"}]) == "Ax"
    assert "chat templates that differ in chat_template.jinja and tokenizer_config.json" in caplog.text
