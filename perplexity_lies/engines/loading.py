"""Load the transformers model and tokenizer of a `Checkpoint`.

Errors here, unlike in transformers: tensors missing from the files (they would be random), tensors that the model has no place
for (they would be dropped), tensors of the wrong shape.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import torch
import transformers

from perplexity_lies.checkpoint.lookup import Checkpoint
from perplexity_lies.engines.base import EngineOptions
from perplexity_lies.engines.device import resolve_device
from perplexity_lies.errors import CheckpointError, UsageError, nearest

STUDENTS = {"plies_hybrid": "distill.students.hybrid:register"}
"""`model_type` of our students -> the function that registers it with transformers. Others use the entry point group below."""

STUDENT_ENTRY_POINTS = "perplexity_lies.students"

GPU_KERNELS = ("fla", "mamba_ssm", "causal_conv1d")
"""Libraries with kernels for linear attention that need a GPU."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def register_student(model_type: str) -> None:
    """Register `model_type` with transformers if it is one of ours or of an installed plug-in."""
    target = STUDENTS.get(model_type)
    if target is not None:
        module, _, function = target.partition(":")
        getattr(import_module(module), function)()
        return
    for entry in entry_points(group=STUDENT_ENTRY_POINTS):
        if entry.name == model_type:
            entry.load()()


def resolve_dtype(name: str, device: torch.device, stored: str) -> torch.dtype:
    """The dtype for a name; `auto` is float32 on a CPU and the `stored` dtype on CUDA. Raises UsageError for unknown names."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else DTYPES.get(stored, torch.bfloat16)
    if name not in DTYPES:
        raise UsageError(
            f"--dtype {name!r} is not a dtype{nearest(name, DTYPES)}",
            found=f"auto, {', '.join(DTYPES)}",
            mend="--dtype auto",
        )
    return DTYPES[name]


@contextlib.contextmanager
def kernels_for(device: torch.device) -> Iterator[None]:
    """On a CPU, hide GPU_KERNELS, which transformers would bind when it first imports a linear-attention model.

    They import without a GPU and fail when called. Without them transformers uses its own PyTorch code.
    """
    hidden = GPU_KERNELS if device.type == "cpu" else ()
    before = {name: sys.modules[name] for name in hidden if name in sys.modules}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "not to be imported"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(before)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer. Raises CheckpointError when transformers cannot read it."""
    register_student(checkpoint.model_type)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            checkpoint.path, trust_remote_code=checkpoint.trust_remote_code
        )
    except Exception as error:  # a stranger's files: transformers and tokenizers may raise anything
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r}: its tokenizer cannot be read", found=_first_line(error),
            mend=[
                "copy tokenizer.json and tokenizer_config.json from the checkpoint it was made of",
                "check config.json, which transformers reads first",
            ],
        ) from error  # fmt: skip


def load_model(checkpoint: Checkpoint, options: EngineOptions) -> transformers.PreTrainedModel:
    """The model in eval mode on its device.

    Raises CheckpointError when the class is unknown, or when tensors are missing, unexpected or of another shape.
    """
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device, checkpoint.dtype)
    register_student(checkpoint.model_type)
    try:
        with kernels_for(device):
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=dtype,
                trust_remote_code=checkpoint.trust_remote_code,
                use_safetensors=None if checkpoint.allow_pickle else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                local_files_only=True,
            )
    except Exception as error:  # as above
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} ({checkpoint.model_type}) cannot be loaded",
            found=_first_line(error),
            mend="check that config.json belongs to these weights; `plies doctor` shows the transformers version",
        ) from error
    _refuse_partial(checkpoint, info)
    _count_latent_heads(model)
    try:
        return model.to(device).eval()
    except RuntimeError as error:  # out of memory is one
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} cannot be put on {device}",
            found=_first_line(error),
            mend="--dtype bfloat16 halves it; --device cpu if the device is taken",
        ) from error


def _count_latent_heads(model: torch.nn.Module) -> None:
    """Latent attention (DeepSeek's) makes keys and values for every head, whatever `num_key_value_heads` says.

    As soon as there is a mask, transformers repeats them by that number all the same, and fails.
    """
    for module in model.modules():
        projection, config = getattr(module, "kv_b_proj", None), getattr(module, "config", None)
        if projection is None or getattr(module, "num_key_value_groups", 1) == 1:
            continue
        widths = [getattr(config, name, 0) for name in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim")]
        if projection.weight.shape[0] == widths[0] * (widths[1] + widths[2]):
            module.num_key_value_groups = 1  # type: ignore[assignment]  # a plain attribute


def _refuse_partial(checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    found = [
        f"{len(info[kind])} {words}: {'; '.join(sorted(map(_named, info[kind]))[:3])}"
        for kind, words in (
            ("missing_keys", "tensors that the model needs and the files lack"),
            ("unexpected_keys", "tensors that the model has no place for"),
            ("mismatched_keys", "tensors of another shape than config.json says"),
        )
        if info.get(kind)
    ]
    if found:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r}: weights and config.json disagree",
            found=found,
            mend="use the config.json that was saved with these weights",
        )


def _named(entry: Any) -> str:
    """A tensor's name, with both shapes where they differ."""
    if isinstance(entry, str):
        return entry
    name, stored, wanted = entry
    return f"{name} is {list(stored)} in the files, {list(wanted)} by config.json"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
