"""Config, tokenizer or the whole directory cannot be used: what the error says was found, and what to type."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError

from .damage import (
    LFS,
    Case,
    adapter,
    assert_refused,
    drop_tensors,
    edit_config,
    edit_json,
    empty_directory,
    grow_vocabulary,
    odd_adapter,
    remove,
    replace,
)

CASES = {
    "empty directory": Case(empty_directory, "has no config.json", "nothing", "save_pretrained"),
    "no config": Case(
        remove("config.json"), "has no config.json", "model.safetensors, tokenizer.json", "give a directory"
    ),
    "config is not JSON": Case(replace("config.json", b'{"a": '), "config.json is not JSON", "line 1", "hf download"),
    "config is not text": Case(replace("config.json", b"\xff\xfe\x00"), "config.json is not JSON", "decode", "again"),
    "config is a list": Case(replace("config.json", b"[1]"), "is not an object", "JSON list", "again"),
    "config nested without end": Case(replace("config.json", b'{"a":' * 10**5), "is not JSON", "recursion", "again"),
    "generation config is a list": Case(
        replace("generation_config.json", b"[1]"), "generation_config.json is not an object", "JSON list", "again"
    ),
    "tokenizer is not JSON": Case(replace("tokenizer.json", b"{"), "tokenizer.json is not JSON", "line 1", "again"),
    "config lacks model_type": Case(
        edit_config(model_type=None), "does not say its model_type", "keys: ", "config.json"
    ),
    "architectures is a string": Case(
        edit_config(architectures="LlamaForCausalLM"), "cannot be used", "expected a list", "again"
    ),
    "encoder-decoder": Case(
        edit_config(is_encoder_decoder=True, model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "is an encoder-decoder",
        "model_type 't5'",
        "ForCausalLM",
    ),
    "masked language model": Case(
        edit_config(architectures=["BertForMaskedLM"]), "not a causal language model", "BertForMaskedLM", "head"
    ),
    "headless": Case(edit_config(architectures=["LlamaModel"]), "not a causal language model", "LlamaModel", "head"),
    "remote code": Case(
        edit_config(auto_map={"AutoModelForCausalLM": "modeling.Own"}),
        "code of its own",
        "modeling.Own",
        "--trust-remote-code",
    ),
    "remote tokenizer code": Case(
        lambda d: edit_json(d / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Own", None]}),
        "code of its own",
        "tok.Own",
        "--trust-remote-code",
    ),
    "no tokenizer": Case(
        remove("tokenizer.json", "tokenizer_config.json"),
        "has no tokenizer",
        "no tokenizer.json in {dir}",
        "cp BASE/tok",
    ),
    "no vocabulary": Case(remove("tokenizer.json"), "has no tokenizer", "no tokenizer.json", "cp BASE/tokenizer"),
    "git-lfs config": Case(replace("config.json", LFS), "without its large files", "config.json", "lfs pull"),
    "git-lfs tokenizer": Case(replace("tokenizer.json", LFS), "without its large files", "tokenizer.json", "lfs pull"),
    "git-lfs vocabulary": Case(replace("spiece.model", LFS), "without its large files", "spiece.model", "lfs pull"),
    "adapter of a base that is no name": Case(odd_adapter, "PEFT adapter", "evil", r"from_pretrained\('BASE'\)"),
    "PEFT adapter": Case(adapter, "PEFT adapter", "base some-org/base", r"merge_and_unload\(\)"),
    "vocabulary of another size": Case(
        edit_config(vocab_size=300), "do not belong together", "vocab_size 300; embedding: 261 rows", "config.json"
    ),
    "width of another size": Case(
        edit_config(hidden_size=64), "do not belong", "hidden_size 64; embedding: 32", "saved with"
    ),
    "a layer too few": Case(drop_tensors("layers.1."), "do not belong", "no tensors for layer 1", "saved with"),
    "a layer too many": Case(
        edit_config(num_hidden_layers=1), "do not belong", "the weights have 2 layers", "saved with"
    ),
    "a trillion layers": Case(
        edit_config(num_hidden_layers=10**12), "do not belong", "no tensors for layer 2, 3, 4", "saved with"
    ),
    "layers beyond the last in words": Case(
        edit_config(num_hidden_layers=1, num_nextn_predict_layers="one"), "do not belong", "have 2 layers", "saved with"
    ),
    "a tokenizer of another model": Case(grow_vocabulary, "do not belong", "token ids to 9,999", "tokenizer.json"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_malformed(llama_copy: Path, case: Case) -> None:
    assert_refused(llama_copy, case)


def test_nothing_of_this_is_refused_undamaged(llama_copy: Path) -> None:
    assert resolve(str(llama_copy)).parameters > 0


def test_checkpoints_inside_are_named(llama_copy: Path, tmp_path: Path) -> None:
    outer = tmp_path / "trainer-output"
    shutil.copytree(llama_copy, outer / "step-500")
    with pytest.raises(CheckpointError, match="has no config.json") as caught:
        resolve(str(outer))
    assert caught.value.mend == (f"give {outer / 'step-500'}",)
