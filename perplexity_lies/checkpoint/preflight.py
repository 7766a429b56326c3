"""Checks on the small files of a checkpoint: is it a causal language model, and do weights, config and tokenizer fit?

    check_config(files, trust_remote_code=False)     not an encoder-decoder, not headless, no code of its own
    check_tokenizer(files)                           there is a vocabulary
    check_shapes(files, tensors)                     vocabulary, width and depth are those of the weights, no size is absurd
    embedding_rows(files, tensors)                   for `token_ids`
    check_templates(files)                           a chat template has a text

Follows what transformers 5 reads. Each check stops before loading what would otherwise end in a traceback, in code run from
the checkpoint, or in numbers from a model with random layers.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from perplexity_lies.checkpoint.small_files import AGAIN, SmallFiles, listing
from perplexity_lies.checkpoint.token_ids import check_end_ids
from perplexity_lies.checkpoint.weights import DTYPE_NAMES, StoredTensor
from perplexity_lies.errors import CheckpointError

logger = logging.getLogger(__name__)

OWN_MODEL_TYPES = frozenset({"plies_hybrid"})
"""Model types of this project: their code is installed, never read from the checkpoint."""

VOCABULARIES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
VOCABULARY_FREE = frozenset({"ByT5Tokenizer"})
"""Tokenizer classes that read bytes and need no vocabulary file."""

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the names of transformers' causal classes end, new and old."""

HIDDEN_KEYS = ("word_embed_proj_dim", "embedding_size", "hidden_size", "n_embd", "d_model")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|backbone\.embeddings)\.weight$"
)
DEPTH = re.compile(r"n_layers?|num_(hidden_)?layers|num_nextn_predict_layers|(encoder|decoder)_layers|depth")
WIDTH = re.compile(
    r"(\w+_)?(hidden|intermediate|vocab|embedding|embed|ffn|inner)_(size|dim)|n_embd|n_inner|d_model|d_ff|head_dim"
    r"|(num|n)_(\w+_)?(heads?|experts)|n_positions|n_ctx"
)
MOST_LAYERS = 10_000
PACKED = 16
"""A size may be this many times the largest extent of a stored tensor: packed weights hold up to 16 numbers in one."""
WIDE = 1 << 20
"""A size up to this is never absurd: a config may state sizes that its model does not use."""
WIDEST_UNSEEN = 1 << 22
"""The largest extent assumed of pickled weights, whose shapes are not read: more than the largest vocabulary."""
LAYER = re.compile(r"^(?:[a-z_]+\.){0,3}(?:layers|h|blocks)\.(\d+)\.")


def has_chat_template(files: SmallFiles) -> bool:
    """Whether the checkpoint brings a chat template, in any of the places where transformers looks."""
    return files.has("chat_template.jinja", "chat_template.json") or bool(files.tokenizer_config.get("chat_template"))


def _templates(files: SmallFiles) -> dict[str, str]:
    """file -> text of the chat template for plain chats, in the places where transformers looks for a tokenizer's."""
    found = {}
    if (content := files.tokenizer_files.get(files.directory / "chat_template.jinja")) is not None:
        found["chat_template.jinja"] = content.decode("utf-8", "replace")
    stated = files.tokenizer_config.get("chat_template")
    for entry in stated if isinstance(stated, list) else [{"name": "default", "template": stated}]:
        match entry:
            case {"name": "default", "template": str(text)}:
                found["tokenizer_config.json"] = text
    return found


def check_templates(files: SmallFiles) -> None:
    """Raises CheckpointError for a chat template without text.

    Warns of two that differ: transformers takes chat_template.jinja.
    """
    found = _templates(files)
    empty = [file for file, text in found.items() if not text.strip()]
    if empty:
        away = "take chat_template out of it" if empty[0].endswith(".json") else f"rm {files.directory / empty[0]}"
        raise CheckpointError(
            f"checkpoint {files.name!r} has an empty chat template",
            found=f"{empty[0]}: no text; every chat would be rendered as nothing",
            mend=f"copy the template of the checkpoint it was made of, or, to have chats asked as plain lines: {away}",
        )
    if len(set(found.values())) > 1:
        logger.warning("checkpoint %s has chat templates that differ in %s; chat_template.jinja is used",
                       files.name, " and ".join(found))  # fmt: skip


def check_tokenizer(files: SmallFiles) -> None:
    """Raises CheckpointError where there is no vocabulary to read."""
    if files.tokenizer is not None:
        return
    config = files.tokenizer_config
    vocabulary = files.has(*VOCABULARIES) or any(path.suffix == ".tiktoken" for path in files.tokenizer_files)
    if config and (vocabulary or config.get("tokenizer_class") in VOCABULARY_FREE):
        return
    lacking = "tokenizer_config.json" if vocabulary else "tokenizer.json"
    raise CheckpointError(
        f"checkpoint {files.name!r} has no tokenizer",
        found=f"no {lacking} in {files.directory}: {listing(files.directory)}",
        mend=f"copy it from the checkpoint this one was made of: cp BASE/tokenizer* {files.directory}/",
    )


def wanted_code(files: SmallFiles) -> Any:
    """The `auto_map` of config or tokenizer, which names Python files of the checkpoint; None without one.

    Always None for our own model types: their code is installed.
    """
    if files.config.get("model_type") in OWN_MODEL_TYPES:
        return None
    return files.config.get("auto_map") or files.tokenizer_config.get("auto_map")


def _check_code(files: SmallFiles) -> None:
    if code := wanted_code(files):
        raise CheckpointError(
            f"checkpoint {files.name!r} wants to run Python code of its own",
            found=f"auto_map: {json.dumps(code)[:200]}",
            mend=(
                "if you have read that code and trust it: the same command with --trust-remote-code",
                "if transformers' own class is meant: take auto_map out of the json file",
            ),
        )


def _check_causal(name: str, config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        found = f"architectures: {json.dumps(architectures)[:100]}, expected a list of class names"
        raise CheckpointError(f"checkpoint {name!r}: config.json cannot be used", found=found, mend=AGAIN)
    if config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"checkpoint {name!r} is an encoder-decoder, and only causal language models are compared here",
            found=f"model_type {config['model_type']!r}, is_encoder_decoder true",
            mend="give a decoder-only checkpoint (architectures: ...ForCausalLM)",
        )
    # Decoders with eyes: AutoModelForCausalLM takes their text half.
    multimodal = "text_config" in config and any(a.endswith("ForConditionalGeneration") for a in architectures)
    if architectures and not multimodal and not any(a.endswith(CAUSAL) for a in architectures):
        raise CheckpointError(
            f"checkpoint {name!r} is not a causal language model",
            found=f"architectures: {', '.join(architectures)}; expected a class that ends in ForCausalLM",
            mend="give the checkpoint that has the language modelling head",
        )


def check_config(files: SmallFiles, *, trust_remote_code: bool) -> None:
    """Raises CheckpointError for a config of anything but a causal language model, and for code that was not allowed."""
    model_type = files.config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(
            f"checkpoint {files.name!r}: config.json does not say its model_type",
            found=f"keys: {', '.join(sorted(files.config)[:8]) or 'none'}",
            mend="use the config.json that was saved with these weights",
        )
    _check_causal(files.name, files.config)
    if not trust_remote_code:
        _check_code(files)
    check_end_ids(files)


def _first_of(config: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, int] | None:
    return next(((key, config[key]) for key in keys if isinstance(config.get(key), int)), None)


def _embedding_mismatches(files: SmallFiles, rows: int, columns: int) -> list[str]:
    mismatches = []
    vocabulary, hidden = files.config.get("vocab_size"), _first_of(files.config, HIDDEN_KEYS)
    if isinstance(vocabulary, int) and vocabulary != rows:
        mismatches.append(f"config.json: vocab_size {vocabulary:,}; embedding: {rows:,} rows")
    if hidden is not None and hidden[1] != columns:
        mismatches.append(f"config.json: {hidden[0]} {hidden[1]:,}; embedding: {columns:,} columns")
    return mismatches


def _layer_mismatches(config: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> list[str]:
    found = {int(match[1]) for tensor in tensors if (match := LAYER.match(tensor.name))}
    told = _first_of(config, LAYER_KEYS)
    if not found or told is None:
        return []
    label, layers = told
    absent = list(itertools.islice((layer for layer in range(layers) if layer not in found), 8))
    if absent:
        return [f"config.json: {label} {layers}; no tensors for layer {', '.join(map(str, absent))}"]
    # DeepSeek and GLM store their multi-token-prediction layers after the last layer and do not count them.
    _, spare = _first_of(config, ("num_nextn_predict_layers",)) or ("", 0)
    if len(found) > layers + spare:
        return [f"config.json: {label} {layers}; the weights have {len(found)} layers"]
    return []


def _absurd_sizes(config: Mapping[str, Any], widest: int, place: str = "config.json") -> list[str]:
    """Sizes that no tensor of these weights can have, at any depth of the config: to build them would fill the memory."""
    found = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _absurd_sizes(value, widest, f"{place}: {key}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        most = MOST_LAYERS if DEPTH.fullmatch(key) else widest if WIDTH.fullmatch(key) else math.inf
        if value > most:
            found.append(f"{place}: {key} {value:,}; the largest that these weights allow: {most:,}")
    return found


def _refuse_mismatches(files: SmallFiles, mismatches: Sequence[str]) -> None:
    if mismatches:
        raise CheckpointError(
            f"checkpoint {files.name!r}: weights, config.json and tokenizer do not belong together",
            found=mismatches[:8],
            mend="use the config.json and tokenizer.json that were saved with these weights",
        )


def check_shapes(files: SmallFiles, tensors: Sequence[StoredTensor]) -> None:
    """Compares vocabulary, width and depth with the stored shapes, where tensors have the usual names.

    Raises CheckpointError listing every mismatch. Of quantised and multimodal checkpoints, whose shapes are packed or nested,
    and of pickle (no `tensors`) only absurd sizes are refused; the loader compares every tensor.
    """
    mismatches: list[str] = []
    if tensors and not ("quantization_config" in files.config or "text_config" in files.config):
        mismatches = _layer_mismatches(files.config, tensors)
        embedding = next((tensor for tensor in tensors if EMBEDDING.search(tensor.name)), None)
        if embedding is not None and len(embedding.shape) == 2:
            mismatches += _embedding_mismatches(files, *embedding.shape)
    _refuse_mismatches(files, mismatches)
    widest = max((extent for tensor in tensors for extent in tensor.shape), default=WIDEST_UNSEEN)
    _refuse_mismatches(files, _absurd_sizes(files.config, max(WIDE, PACKED * widest)))


def embedding_rows(files: SmallFiles, tensors: Sequence[StoredTensor]) -> int | None:
    """Rows of the largest embedding; the config's vocabulary where no tensor has its usual name; None where neither tells."""
    rows = [t.shape[0] for t in tensors if EMBEDDING.search(t.name) and len(t.shape) == 2 and t.dtype in DTYPE_NAMES]
    if rows:
        return max(rows)
    text = files.config.get("text_config")
    stated = (text if isinstance(text, dict) else files.config).get("vocab_size")
    return stated if type(stated) is int and stated > 0 else None
