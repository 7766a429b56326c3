"""Checkpoint directories: bf16 safetensors, configs, tokenizer and, for our own architecture, its code.

A student's directory opens in plain transformers and plain lm-eval with `trust_remote_code=True` where this project is not
installed: `auto_map` names classes in modeling_plies_hybrid.py beside the weights, a copy of `students/hybrid.py`, with copies
of what that imports. transformers' own `register_for_auto_class` copies only relative imports, so the copies are made here
and their imports rewritten. Where the project is installed, its own code is used, with `trust_remote_code` or without.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.students.hybrid import MIXERS, HybridConfig, HybridForCausalLM, register

PROJECT = "perplexity-lies"
STUDENTS = "distill.students"
MODELING = "modeling_plies_hybrid"
"""Module name of the copy of `students/hybrid.py`."""
IMPORT = re.compile(rf"^(\s*)from {re.escape(STUDENTS)}\.(\w+) import", re.MULTILINE)
HEADER = """# Written by {project} {version} beside the weights of a student: a copy of {module}.
# SPDX-License-Identifier: Apache-2.0

"""
FOOTER = """
# Named for transformers, which fetches only the files that are imported relatively.
"""


def _version() -> str:
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return "(not installed)"


def remote_code() -> dict[str, str]:
    """File name -> text of the Python files that define a student without this project; they import each other relatively."""
    mixers = [target.partition(":") for target in MIXERS.values()]
    package, files, wanted = (
        resources.files(STUDENTS),
        dict[str, str](),
        ["hybrid", *(module for module, _, _ in mixers)],
    )
    for name in wanted:
        source = (package / f"{name}.py").read_text(encoding="utf-8")
        wanted += [found for _, found in IMPORT.findall(source) if found not in wanted]
        header = HEADER.format(project=PROJECT, version=_version(), module=f"{STUDENTS}.{name}")
        files[f"{MODELING if name == 'hybrid' else name}.py"] = header + IMPORT.sub(r"\1from .\2 import", source)
    files[f"{MODELING}.py"] += FOOTER + "".join(f"from .{module} import {kind}  # noqa\n" for module, _, kind in mixers)
    return files


def _with_code(model: HybridForCausalLM, directory: Path) -> None:
    """Writes the code into `directory` and names its classes in the model's configuration."""
    model.config.auto_map = {
        "AutoConfig": f"{MODELING}.{HybridConfig.__name__}",
        "AutoModelForCausalLM": f"{MODELING}.{HybridForCausalLM.__name__}",
    }
    for name, text in remote_code().items():
        (directory / name).write_text(text, encoding="utf-8")


def export_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes a checkpoint directory, whole or not at all; replaces an older one.

    Weights are rounded to bfloat16, except those that the class keeps in float32 (decay rates). `model` does not change.
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
    if isinstance(rounded, HybridForCausalLM):
        _with_code(rounded, partial)
    rounded.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for weights in partial.glob("*.safetensors"):
        weights.chmod(0o644)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def load_exported(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (float32, evaluation mode) and tokenizer of a checkpoint directory; code beside the weights is not run."""
    register()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False).eval()
    return model, AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
