"""Two sets of weights beside each other: what is loaded is what is hashed, or nothing is; and files that lie by their name."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError

from .damage import WEIGHTS, edit_json, index_of

INDEX = f"{WEIGHTS}.index.json"


def shard(directory: Path, *, count: int = 2, shift: float = 0.0, index: bool = True) -> None:
    """Beside the single file its tensors in shards, each number moved by `shift`."""
    tensors = load_file(directory / WEIGHTS)
    weight_map: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] + np.float32(shift) for name in sorted(tensors)[i::count]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if index:
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def newer_shards(directory: Path) -> None:
    shard(directory, shift=1.0)


def newer_shards_that_did_not_arrive(directory: Path) -> None:
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def shards_without_their_index(directory: Path) -> None:
    shard(directory, shift=1.0, index=False)


def shards_of_two_saves(directory: Path) -> None:
    shard(directory, count=3, shift=1.0)
    shard(directory, count=2)
    (directory / WEIGHTS).unlink()


def more_than_the_single_file(directory: Path) -> None:
    save_file({"b": np.ones(2, np.float32)}, directory / "more.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": "more.safetensors"}}))


def two_pickles(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    for file in ("pytorch_model.bin", "pytorch_model-00001-of-00001.bin"):
        torch.save({}, directory / file)
    weight_map = {"a": "pytorch_model-00001-of-00001.bin"}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "asked", "mend"),
    [
        (newer_shards, "two sets of weights", "rm .*index.json"),
        (newer_shards_that_did_not_arrive, "two sets of weights", "mv .*model.safetensors"),
        (shards_without_their_index, "two sets of weights", "rm .*00001-of-00002"),
        (shards_of_two_saves, "shards that its index does not name", "rm .*00001-of-00003"),
        (more_than_the_single_file, "two sets of weights", "rm .*index.json"),
        (two_pickles, "two sets of weights", "rm .*index.json"),
    ],
)
def test_two_sets_are_refused(llama_copy: Path, damage: Callable[[Path], None], asked: str, mend: str) -> None:
    damage(llama_copy)
    with pytest.raises(CheckpointError, match=asked) as caught:
        resolve(str(llama_copy), allow_pickle=True)
    assert any(re.search(mend, line) for line in caught.value.mend), caught.value.mend


def test_the_same_tensors_twice_are_one_set(llama_copy: Path) -> None:
    before = resolve(str(llama_copy))
    shard(llama_copy)
    assert resolve(str(llama_copy)).weights_digest == before.weights_digest
    (llama_copy / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(["a", "b"], WEIGHTS)}))
    found = resolve(str(llama_copy))
    assert found.weights_digest == before.weights_digest
    assert found.unread_weights == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_what_is_not_read_is_named(llama_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in ("pytorch_model.bin", "model.fp16.safetensors", "consolidated.00.pth", "optimizer.pt", "x.gguf"):
        (llama_copy / file).write_bytes(b"x")
    found = resolve(str(llama_copy)).describe()
    assert found.unread_weights == ("consolidated.00.pth", "model.fp16.safetensors", "pytorch_model.bin", "x.gguf")
    assert "measured is model.safetensors; beside it, unread: consolidated.00.pth" in caplog.text


def test_a_file_that_only_the_config_names(llama_copy: Path) -> None:
    """transformers would load it in place of model.safetensors."""
    shutil.copy(llama_copy / WEIGHTS, llama_copy / "other.safetensors")
    edit_json(llama_copy / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match="names a weights file of its own"):
        resolve(str(llama_copy))
    edit_json(llama_copy / "config.json", transformers_weights=WEIGHTS)
    assert resolve(str(llama_copy)).parameters > 0


def test_a_distributed_checkpoint(llama_copy: Path) -> None:
    """transformers would load it in place of model.safetensors."""
    shutil.copy(llama_copy / WEIGHTS, llama_copy / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        resolve(str(llama_copy))


def test_whole_weights_and_an_adapter(llama_copy: Path) -> None:
    (llama_copy / "adapter_config.json").write_text('{"base_model_name_or_path": "some-org/base"}')
    with pytest.raises(CheckpointError, match="or has one beside whole weights") as caught:
        resolve(str(llama_copy))
    assert "mv " in caught.value.mend[-1]


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("write", [lambda path: torch.save({}, path), lambda path: path.write_bytes(pickle.dumps({}))])
def test_a_pickle_under_the_name_of_safetensors(llama_copy: Path, write: Callable, allowed: bool) -> None:
    write(llama_copy / WEIGHTS)
    with pytest.raises(CheckpointError, match="a pickle under the name of a safetensors file"):
        resolve(str(llama_copy), allow_pickle=allowed)


@pytest.mark.parametrize("allowed", [False, True])
def test_an_index_of_safetensors_that_names_pickles(llama_copy: Path, allowed: bool) -> None:
    """transformers unpickles what it names, safetensors only or not."""
    index_of(json.dumps({"weight_map": {"a": "a.bin"}}).encode())(llama_copy)
    torch.save({}, llama_copy / "a.bin")
    with pytest.raises(CheckpointError, match="names files of another kind"):
        resolve(str(llama_copy), allow_pickle=allowed)


@pytest.mark.parametrize("allowed", [False, True])
def test_safetensors_under_the_name_of_a_pickle(llama_copy: Path, allowed: bool) -> None:
    (llama_copy / WEIGHTS).rename(llama_copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only by name: they are safetensors") as caught:
        resolve(str(llama_copy), allow_pickle=allowed)
    assert "mv " in caught.value.mend[0]
