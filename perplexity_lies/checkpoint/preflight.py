"""Whether the small files of a checkpoint describe a causal language model that these weights and this tokenizer fit.

Follows what transformers 5 reads: config.json, tokenizer files, chat templates. Refuses before anything is loaded what
would otherwise end in a traceback, in code run from the checkpoint, or in numbers from a model with random layers.
Knows nothing of where a checkpoint comes from and does not read its weights, only their shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perplexity_lies.checkpoint.weights import AGAIN, StoredTensor, listing, refuse_lfs_pointer
from perplexity_lies.errors import CheckpointError

OWN_MODEL_TYPES = frozenset({"plies_hybrid"})
"""Architectures that this project ships: their code is installed, never read from the checkpoint."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
VOCABULARIES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
VOCABULARY_FREE = frozenset({"ByT5Tokenizer"})
"""Tokenizer classes over bytes, which need no vocabulary file."""

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of transformers' causal classes, old and new."""

HIDDEN_KEYS = ("word_embed_proj_dim", "embedding_size", "hidden_size", "n_embd", "d_model")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|backbone\.embeddings)\.weight$"
)
LAYER = re.compile(r"^(?:[a-z_]+\.){0,3}(?:layers|h|blocks)\.(\d+)\.")


def read_config(name: str, path: Path) -> dict[str, Any]:
    """A JSON object from `path`. Raises CheckpointError where it is not one."""
    refuse_lfs_pointer(name, path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {name!r}: {path.name} is not JSON", found=str(error), mend=AGAIN) from error
    if not isinstance(content, dict):
        found = f"a JSON {type(content).__name__}, expected an object"
        raise CheckpointError(f"checkpoint {name!r}: {path.name} is not an object", found=found, mend=AGAIN)
    return content


def tokenizer_files(directory: Path) -> list[Path]:
    """Files that decide how text becomes tokens and messages become text, by name."""
    named = (directory / name for name in TOKENIZER_FILES)
    loose = (*directory.glob("*.tiktoken"), *directory.glob("additional_chat_templates/*.jinja"))
    return sorted(path for path in (*named, *loose) if path.is_file())


def _tokenizer_config(name: str, directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    return read_config(name, path) if path.is_file() else {}


def has_chat_template(name: str, directory: Path) -> bool:
    """Whether the checkpoint brings a template of its own, in any of the places where transformers looks."""
    files = (directory / "chat_template.jinja", directory / "chat_template.json")
    return any(path.is_file() for path in files) or bool(_tokenizer_config(name, directory).get("chat_template"))


def check_tokenizer(name: str, directory: Path) -> None:
    """Raises CheckpointError where there is no vocabulary to read."""
    if (directory / "tokenizer.json").is_file():
        refuse_lfs_pointer(name, directory / "tokenizer.json")
        return
    config = _tokenizer_config(name, directory)
    vocabulary = any((directory / file).is_file() for file in VOCABULARIES) or any(directory.glob("*.tiktoken"))
    if config and (vocabulary or config.get("tokenizer_class") in VOCABULARY_FREE):
        return
    lacking = "tokenizer_config.json" if vocabulary else "tokenizer.json"
    raise CheckpointError(
        f"checkpoint {name!r} has no tokenizer",
        found=f"no {lacking} in {directory}: {listing(directory)}",
        mend=f"copy it from the checkpoint this one was made of: cp BASE/tokenizer* {directory}/",
    )


def needs_remote_code(directory: Path, config: Mapping[str, Any]) -> bool:
    """Whether config or tokenizer ask for Python files of the checkpoint (`auto_map`); never so for our own types."""
    if config.get("model_type") in OWN_MODEL_TYPES:
        return False
    return bool(config.get("auto_map") or _tokenizer_config(str(directory), directory).get("auto_map"))


def _check_code(name: str, directory: Path, config: Mapping[str, Any]) -> None:
    if not needs_remote_code(directory, config):
        return
    code = config.get("auto_map") or _tokenizer_config(name, directory)["auto_map"]
    raise CheckpointError(
        f"checkpoint {name!r} wants to run Python code of its own",
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


def check_config(name: str, directory: Path, config: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Raises CheckpointError where `config` is not of a causal language model, or wants code that was not allowed."""
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise CheckpointError(
            f"checkpoint {name!r}: config.json does not say its model_type",
            found=f"keys: {', '.join(sorted(config)[:8]) or 'none'}",
            mend="use the config.json that was saved with these weights",
        )
    _check_causal(name, config)
    if not trust_remote_code:
        _check_code(name, directory, config)


def _first_of(config: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, int] | None:
    return next(((key, config[key]) for key in keys if isinstance(config.get(key), int)), None)


def _largest_token_id(name: str, directory: Path) -> int | None:
    """Of tokenizer.json's own vocabulary; None where there is no such file or it lists none."""
    path = directory / "tokenizer.json"
    model = read_config(name, path).get("model") if path.is_file() else None
    match model:
        case {"vocab": dict(vocabulary)} if vocabulary and all(isinstance(v, int) for v in vocabulary.values()):
            return max(vocabulary.values())
        case {"vocab": list(vocabulary)} if vocabulary:
            return len(vocabulary) - 1
    return None


def _embedding_mismatches(name: str, directory: Path, config: Mapping[str, Any], shape: tuple[int, ...]) -> list[str]:
    mismatches = []
    rows, columns = shape
    vocabulary, hidden, token = (
        config.get("vocab_size"),
        _first_of(config, HIDDEN_KEYS),
        _largest_token_id(name, directory),
    )
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
    # DeepSeek and GLM store their multi-token-prediction layers after the last layer and do not count them.
    spare = config.get("num_nextn_predict_layers") or 0
    absent = sorted(set(range(told[1])) - found)
    if absent:
        return [f"config.json: {told[0]} {told[1]}; no tensors for layer {', '.join(map(str, absent[:8]))}"]
    if len(found) > told[1] + spare:
        return [f"config.json: {told[0]} {told[1]}; the weights have {len(found)} layers"]
    return []


def check_shapes(name: str, directory: Path, config: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> None:
    """Compares vocabulary, width and depth with what is stored where the usual names tell; the loader compares all.

    Raises CheckpointError listing every mismatch. Quantised and multimodal checkpoints pass: their shapes are packed or
    nested.
    """
    if "quantization_config" in config or "text_config" in config:
        return
    mismatches = _layer_mismatches(config, tensors)
    embedding = next((tensor for tensor in tensors if EMBEDDING.search(tensor.name)), None)
    if embedding is not None and len(embedding.shape) == 2:
        mismatches += _embedding_mismatches(name, directory, config, embedding.shape)
    if mismatches:
        raise CheckpointError(
            f"checkpoint {name!r}: weights, config.json and tokenizer do not belong together",
            found=mismatches,
            mend="use the config.json and tokenizer.json that were saved with these weights",
        )
