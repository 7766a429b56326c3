"""Load the transformers model and tokenizer of a `Checkpoint`.

Errors here, unlike in transformers: tensors missing from the files (they would be random), tensors that the model has no place
for (they would be dropped), tensors of the wrong shape.
"""

from __future__ import annotations

import contextlib
import logging
import re
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
from perplexity_lies.engines.leftovers import needless, stored_shapes
from perplexity_lies.errors import CheckpointError, UsageError, nearest

STUDENTS = {"plies_hybrid": "distill.students.hybrid:register"}
"""`model_type` of our students -> the function that registers it with transformers. Others use the entry point group below."""

STUDENT_ENTRY_POINTS = "perplexity_lies.students"

GPU_KERNELS = ("fla", "mamba_ssm", "causal_conv1d")
"""Libraries with kernels for linear attention that need a GPU."""

TORCH_ATTENTION = ("eager", "sdpa")
"""Attention that torch computes by itself on every device, with the engine's own masks."""

TEMPLATE_PROBE = "pear"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger(__name__)


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
        tokenizer = transformers.AutoTokenizer.from_pretrained(
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
    _refuse_deaf_template(checkpoint, tokenizer)
    return tokenizer


def _refuse_deaf_template(checkpoint: Checkpoint, tokenizer: Any) -> None:
    """Raises CheckpointError where a chat in the checkpoint's template does not hold what the user said.

    Templates for pictures read a list of parts, and find none in a text. One that fails is told of when it is used.
    """
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        return
    if isinstance(templates, dict) and "default" not in templates:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} has chat templates, but none for plain chats",
            found=f"{', '.join(sorted(templates)[:5])}; expected one named default",
            mend="name one of them default where it stands (tokenizer_config.json), or save it as chat_template.jinja",
        )
    try:
        chat = [{"role": "user", "content": TEMPLATE_PROBE}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception:  # a stranger's template may raise anything
        return
    if TEMPLATE_PROBE.lower() not in str(rendered).lower():
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r}: its chat template leaves out what the user says",
            found=f"{TEMPLATE_PROBE!r} is rendered as {str(rendered)[:200]!r}",
            mend="a template that takes a message's content as text: mend chat_template.jinja, or tokenizer_config.json",
        )


def load_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's config, without what its training machine left in it: its attention kernel, flags about outputs.

    An attention that is not computed by torch itself is replaced by transformers' own choice, sdpa where the class has it;
    the engine's settings say which it became.
    """
    config = transformers.AutoConfig.from_pretrained(
        checkpoint.path, trust_remote_code=checkpoint.trust_remote_code, local_files_only=True
    )
    for part in (config, config.get_text_config()):
        part.return_dict, part.output_hidden_states, part.output_attentions = True, False, False
        if getattr(part, "use_cache", True) is not True:
            part.use_cache = True
        named = part._attn_implementation
        if named not in (None, *TORCH_ATTENTION):
            logger.warning("%s: config.json names attention %r, which is not used here", checkpoint.name, named)
            part._attn_implementation = None
    return config


def _turn_back_fp8(checkpoint: Checkpoint, config: Any) -> bool:
    """Have block-FP8 weights multiplied by their scales when they are loaded, as its kernels need a GPU. False for others.

    Raises CheckpointError for a tensor whose last block is partial: transformers derives the size of a block from the number
    of scales, and would multiply by the wrong ones without a word.
    """
    told = getattr(config, "quantization_config", None)
    if not isinstance(told, dict) or told.get("quant_method") != "fp8":
        return False
    config.quantization_config = {**told, "dequantize": True}
    block = told.get("weight_block_size")
    files = [] if checkpoint.path is None else sorted(checkpoint.path.glob("*.safetensors"))
    shapes = {name: shape for path in files for name, shape in stored_shapes(path).items()}
    for name, scales in shapes.items():
        weight: tuple[int, ...] = shapes.get(name.removesuffix("_scale_inv"), ())
        if not (
            name.endswith(".weight_scale_inv") and isinstance(block, list) and weight and len(scales) == len(weight)
        ):
            continue
        for extent, count, size in zip(weight[-2:], scales[-2:], block):  # noqa: B905  # scales may have fewer
            if 1 < count == -(-extent // size) and extent % size:
                raise CheckpointError(
                    f"checkpoint {checkpoint.name!r} cannot be turned back from FP8 on a CPU",
                    found=f"{name.removesuffix('_scale_inv')} has {extent} rows or columns in blocks of {size}: the last is cut",
                    mend="--device cuda on a GPU with FP8, or the checkpoint before it was quantised",
                )
    return True


def _class_for(config: Any, remote_code: bool) -> Any:
    """The auto class that opens a config: causal language models, or those that also see, asked in text alone."""
    causal, seeing = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    coded = remote_code and causal.__name__ in (getattr(config, "auto_map", None) or {})
    known = type(config) in causal._model_mapping
    return seeing if not (coded or known) and type(config) in seeing._model_mapping else causal


def load_model(checkpoint: Checkpoint, options: EngineOptions) -> transformers.PreTrainedModel:
    """The model in eval mode on its device.

    Raises CheckpointError when the class is unknown, or when tensors are missing, unexpected or of another shape.
    """
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device, checkpoint.dtype)
    register_student(checkpoint.model_type)
    try:
        with kernels_for(device):
            config = load_config(checkpoint)
            turned_back = device.type == "cpu" and _turn_back_fp8(checkpoint, config)
            model, info = _class_for(config, checkpoint.trust_remote_code).from_pretrained(
                checkpoint.path,
                config=config,
                dtype=dtype,
                trust_remote_code=checkpoint.trust_remote_code,
                use_safetensors=None if checkpoint.allow_pickle else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                local_files_only=True,
            )
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise _cannot_load(checkpoint, error) from error
    _refuse_partial(checkpoint, info, config)
    _count_latent_heads(model)
    _forget_unreachable_ends(model)
    if turned_back:
        _in_one_dtype(model, dtype)
    try:
        return model.to(device).eval()
    except RuntimeError as error:  # out of memory is one
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} cannot be put on {device}",
            found=_first_line(error),
            mend="--dtype bfloat16 halves it; --device cpu if the device is taken",
        ) from error


INSTALL = re.compile(r"pip install (?:-\S+ )*([\w.\[\]<>=,!~-]*\w)")
"""The library that an error of transformers says to install."""


def _cannot_load(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    """The error for what transformers raised, with advice of its kind."""
    found, mend = _first_line(error), "check that config.json belongs to these weights"
    if isinstance(error, ImportError) and (missing := INSTALL.search(str(error))):
        mend = f"the library that these weights need: pip install '{missing[1]}'; or a checkpoint that is not quantised"
    elif "Unrecognized configuration class" in found:
        mend = "no class of transformers asks this type in text alone: give its text model, saved as ...ForCausalLM"
    return CheckpointError(
        f"checkpoint {checkpoint.name!r} ({checkpoint.model_type}) cannot be loaded",
        found=found,
        mend=f"{mend}; `plies doctor` shows the transformers version",
    )


def _in_one_dtype(model: Any, dtype: torch.dtype) -> None:
    """Put every parameter in `dtype`: a model turned back from FP8 keeps what was not quantised in the dtype of its file."""
    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)


def _forget_unreachable_ends(model: Any) -> None:
    """Drop stated end tokens that the model cannot say: nothing ends there, and whoever looks them up would fail."""
    head = model.get_output_embeddings()
    rows = getattr(head, "out_features", None) or model.config.get_text_config().vocab_size
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        stated = getattr(config, "eos_token_id", None)
        ids = stated if isinstance(stated, list | tuple) else [stated]
        kept = [token for token in ids if token is not None and 0 <= token < rows]
        if stated is not None and len(kept) < len(ids):
            config.eos_token_id = kept or None


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


def _refuse_partial(checkpoint: Checkpoint, info: dict[str, Any], config: Any) -> None:
    files = sorted(checkpoint.path.glob("*.safetensors")) if checkpoint.path and not checkpoint.allow_pickle else []
    info = {**info, "unexpected_keys": [n for n in info["unexpected_keys"] if not needless(n, files, config)]}
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
