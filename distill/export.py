"""Checkpoint directories: bf16 safetensors, configs and tokenizer, loadable by transformers' Auto classes."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.students.hybrid import register


def export_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes a checkpoint directory, whole or not at all, in the place of an older one.

    Weights are rounded to bfloat16, but for parameters that the class keeps in float32 (KDA's decay rates). `model`
    itself is left as it is.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    rounded = copy.deepcopy(model)
    for name, parameter in rounded.named_parameters():
        if name.rsplit(".", 1)[-1] not in exact:
            parameter.data = parameter.data.to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    rounded.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "model.safetensors").chmod(0o644)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def load_exported(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (float32, evaluation mode) and tokenizer of a checkpoint directory."""
    register()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)
