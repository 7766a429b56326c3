"""Weights that cannot be used, or that hold NaN: what the error says was found, and what to type."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError

from .damage import (
    EMBEDDING,
    LFS,
    WEIGHTS,
    Case,
    assert_refused,
    cut_weights,
    dangling_link,
    edit_header,
    index_of,
    instead_of_weights,
    poison,
    remove,
    replace,
    shard_outside,
    shard_twice,
    shard_with_one_missing,
)

CASES = {
    "no weights": Case(remove(WEIGHTS), "has no weights", "expected model.safetensors", "hf download"),
    "pickle only": Case(
        instead_of_weights("pytorch_model.bin"), "as pickle only", "pytorch_model.bin", "--allow-pickle"
    ),
    "pickle, other name": Case(
        instead_of_weights("consolidated.00.pth"), "pickle only", "consolidated", "--allow-pickle"
    ),
    "GGUF": Case(instead_of_weights("model-Q4_0.gguf", b"GGUF"), "is GGUF", "model-Q4_0.gguf", "hf download"),
    "weights under another name": Case(
        lambda d: (d / WEIGHTS).rename(d / "weights.safetensors") and None,
        "under names that say nothing",
        "weights.safetensors",
        "mv {dir}/weights.safetensors {dir}/model.safetensors",
    ),
    "dangling link": Case(dangling_link, "links to files that are gone", WEIGHTS, "hf download"),
    "missing shard": Case(shard_with_one_missing, "misses shards", "model-00002-of-00002", "hf download"),
    "shard outside": Case(shard_outside, "outside the directory", "etc/passwd", "again"),
    "tensor stored twice": Case(shard_twice, "stores a tensor twice", "in a.safetensors and in b.safetensors", "again"),
    "index of another shape": Case(index_of(b"[]"), "index of shards that cannot be read", "weight_map", "again"),
    "index nested without end": Case(
        index_of(b"[" * 10**5), "index of shards that cannot be read", "recursion", "again"
    ),
    "git-lfs pointer": Case(
        replace(WEIGHTS, LFS), "without its large files", "git-lfs pointer", "git -C {dir} lfs pull"
    ),
    "zero bytes": Case(replace(WEIGHTS, b""), "an empty weights file", "0 bytes", "hf download"),
    "five bytes": Case(replace(WEIGHTS, b"12345"), "truncated weights", "5 bytes", "again"),
    "cut in the header": Case(cut_weights(0.005), "truncated weights", "its header alone says", "again"),
    "cut in the data": Case(cut_weights(0.7), "truncated weights", "tensors are cut off", "again"),
    "trailing bytes": Case(
        lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes() + b"\0") and None,
        "no tensor owns",
        "accounts for",
        "again",
    ),
    "torch.save under another name": Case(
        replace(WEIGHTS, b"PK\x03\x04" + b"0" * 99), "a pickle under", "torch.save", "again"
    ),
    "a web page": Case(replace(WEIGHTS, b"<!doctype html><html>"), "corrupt weights header", "<!doctyp", "hf download"),
    "header is not JSON": Case(
        replace(WEIGHTS, struct.pack("<Q", 4) + b"{{{{"), "corrupt weights header", "not JSON", "again"
    ),
    "header nested without end": Case(
        replace(WEIGHTS, struct.pack("<Q", 10**5) + b"[" * 10**5), "corrupt weights header", "not JSON", "again"
    ),
    "header is a list": Case(
        replace(WEIGHTS, struct.pack("<Q", 2) + b"[]"), "corrupt weights header", "JSON list", "again"
    ),
    "header without tensors": Case(replace(WEIGHTS, struct.pack("<Q", 2) + b"{}"), "hold nothing", WEIGHTS, "again"),
    "offsets overlap": Case(
        edit_header(lambda h: h["lm_head.weight"].update(data_offsets=h[EMBEDDING]["data_offsets"])),
        "corrupt weights header",
        "begins at byte",
        "again",
    ),
    "shape and offsets disagree": Case(
        edit_header(lambda h: h[EMBEDDING]["shape"].append(2)), "corrupt weights header", "its offsets span", "again"
    ),
    "negative shape": Case(
        edit_header(lambda h: h[EMBEDDING].update(shape=[-1, 32])), "corrupt", "described as", "again"
    ),
    "unknown dtype": Case(edit_header(lambda h: h[EMBEDDING].update(dtype="F7")), "unknown dtype", "'F7'", "again"),
    "NaN": Case(poison(float("nan")), "NaN or Inf", r"layers.1.mlp.up_proj.weight \[64, 32\]: 1 of 2,048", "earlier"),
    "Inf": Case(poison(float("inf")), "NaN or Inf", "1 of 2,048 numbers", "earlier"),
    "minus Inf, half": Case(poison(float("-inf"), "float16"), "NaN or Inf", "1 of 2,048 numbers", "earlier"),
    "NaN, double": Case(poison(float("nan"), "float64"), "NaN or Inf", "1 of 2,048 numbers", "earlier"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_malformed(llama_copy: Path, case: Case) -> None:
    assert_refused(llama_copy, case)


def test_bfloat16_nan_and_inf_are_found_by_their_bits(tiny_checkpoint, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_checkpoint("llama", dtype="bfloat16"), tmp_path / "checkpoint"))
    assert resolve(str(directory)).dtype == "bfloat16"
    path = directory / WEIGHTS
    for bits in (0x7FC0, 0xFF80, 0x7F81):  # a quiet NaN, minus infinity, a signalling NaN
        raw = bytearray(path.read_bytes())
        raw[-2:] = struct.pack("<H", bits)
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match="NaN or Inf"):
            resolve(str(directory))
    raw[-2:] = struct.pack("<H", 0x7F7F)  # the largest finite number
    path.write_bytes(raw)
    assert resolve(str(directory)).parameters > 0


def test_not_finite_beyond_the_first_chunk(llama_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perplexity_lies.checkpoint.weights.CHUNK_BYTES", 1 << 10)
    whole = resolve(str(llama_copy)).weights_digest
    monkeypatch.undo()
    assert resolve(str(llama_copy)).weights_digest == whole
    poison(np.inf)(llama_copy)
    monkeypatch.setattr("perplexity_lies.checkpoint.weights.CHUNK_BYTES", 1 << 10)
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        resolve(str(llama_copy))


def test_pickle_allowed_but_under_a_name_that_is_not_loaded(llama_copy: Path) -> None:
    instead_of_weights("consolidated.00.pth")(llama_copy)
    with pytest.raises(CheckpointError, match="names that say nothing") as caught:
        resolve(str(llama_copy), allow_pickle=True)
    assert "pytorch_model.bin" in " ".join(caught.value.mend)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty weights file"),
        (LFS, "without its large files"),
        (b"<html>", "torch.save did not write"),
        (b"PK\x03\x04" + bytes(99), "truncated weights"),
    ],
)
def test_pickle_allowed_but_broken(llama_copy: Path, content: bytes, words: str) -> None:
    instead_of_weights("pytorch_model.bin", content)(llama_copy)
    with pytest.raises(CheckpointError, match=words):
        resolve(str(llama_copy), allow_pickle=True)


def test_trainer_state_is_not_taken_for_weights(llama_copy: Path) -> None:
    instead_of_weights("optimizer.pt")(llama_copy)
    with pytest.raises(CheckpointError, match="has no weights"):
        resolve(str(llama_copy))
