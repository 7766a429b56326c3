"""Checks on the small files of a checkpoint: is it a causal language model, and do weights, config and tokenizer fit?

    check_config(files, trust_remote_code=False)     not an encoder-decoder, not headless, no code of its own
    check_tokenizer(files)                           there is a vocabulary
    check_shapes(files, tensors)                     vocabulary, width and depth are those of the weights

Follows what transformers 5 reads. Each check stops before loading what would otherwise end in a traceback, in code run from
the checkpoint, or in numbers from a model with random layers.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from perplexity_lies.checkpoint.small_files import AGAIN, SmallFiles, listing
from perplexity_lies.checkpoint.weights import StoredTensor
from perplexity_lies.errors import CheckpointError

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
LAYER = re.compile(r"^(?:[a-z_]+\.){0,3}(?:layers|h|blocks)\.(\d+)\.")


def has_chat_template(files: SmallFiles) -> bool:
    """Whether the checkpoint brings a chat template, in any of the places where transformers looks."""
    return files.has("chat_template.jinja", "chat_template.json") or bool(files.tokenizer_config.get("chat_template"))


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


def _first_of(config: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, int] | None:
    return next(((key, config[key]) for key in keys if isinstance(config.get(key), int)), None)


def _largest_token_id(tokenizer: Mapping[str, Any] | None) -> int | None:
    """Largest id in the vocabulary of tokenizer.json; None where there is no such file or it lists no ids."""
    match (tokenizer or {}).get("model"):
        case {"vocab": dict(vocabulary)} if vocabulary and all(isinstance(v, int) for v in vocabulary.values()):
            return max(vocabulary.values())
        case {"vocab": list(vocabulary)} if vocabulary:
            return len(vocabulary) - 1
    return None


def _embedding_mismatches(files: SmallFiles, rows: int, columns: int) -> list[str]:
    mismatches = []
    vocabulary, hidden = files.config.get("vocab_size"), _first_of(files.config, HIDDEN_KEYS)
    token = _largest_token_id(files.tokenizer)
    if isinstance(vocabulary, int) and vocabulary != rows:
        mismatches.append(f"config.json: vocab_size {vocabulary:,}; embedding: {rows:,} rows")
    if hidden is not None and hidden[1] != columns:
        mismatches.append(f"config.json: {hidden[0]} {hidden[1]:,}; embedding: {columns:,} columns")
    if token is not None and token >= rows:
        mismatches.append(f"tokenizer.json: token ids to {token:,}; embedding: {rows:,} rows")
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


def check_shapes(files: SmallFiles, tensors: Sequence[StoredTensor]) -> None:
    """Compares vocabulary, width and depth with the stored shapes, where tensors have the usual names.

    Raises CheckpointError listing every mismatch. Passes quantised and multimodal checkpoints, whose shapes are packed or
    nested; the loader compares every tensor.
    """
    if "quantization_config" in files.config or "text_config" in files.config:
        return
    mismatches = _layer_mismatches(files.config, tensors)
    embedding = next((tensor for tensor in tensors if EMBEDDING.search(tensor.name)), None)
    if embedding is not None and len(embedding.shape) == 2:
        mismatches += _embedding_mismatches(files, *embedding.shape)
    if mismatches:
        raise CheckpointError(
            f"checkpoint {files.name!r}: weights, config.json and tokenizer do not belong together",
            found=mismatches,
            mend="use the config.json and tokenizer.json that were saved with these weights",
        )
