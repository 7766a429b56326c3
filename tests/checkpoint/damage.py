"""Ways to damage a checkpoint, and what the error must then say."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError

WEIGHTS = "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1044992\n"


def edit_json(path: Path, **changes: object) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_config(**changes: object) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", **changes)


def remove(*names: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return damage


def replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def instead_of_weights(name: str, content: bytes = b"x" * 64) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / WEIGHTS).unlink()
        (directory / name).write_bytes(content)

    return damage


def cut_weights(fraction: float) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        os.truncate(path, int(path.stat().st_size * fraction))

    return damage


def edit_header(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        raw = (directory / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return damage


def poison(value: float, dtype: str = "float32") -> Callable[[Path], None]:
    """One number of one tensor becomes `value`."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        tensor = tensors["model.layers.1.mlp.up_proj.weight"].astype(dtype)
        tensor[17, 5] = value
        save_file(tensors | {"model.layers.1.mlp.up_proj.weight": tensor}, directory / WEIGHTS)

    return damage


def drop_tensors(part: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        save_file({name: tensor for name, tensor in tensors.items() if part not in name}, directory / WEIGHTS)

    return damage


def shard_with_one_missing(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model-00001-of-00002.safetensors")
    weight_map = {EMBEDDING: "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def shard_outside(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {EMBEDDING: "../../etc/passwd"}}))


def shard_twice(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "a.safetensors")
    shutil.copy(directory / "a.safetensors", directory / "b.safetensors")
    weight_map = {EMBEDDING: "a.safetensors", "lm_head.weight": "b.safetensors"}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_of(content: bytes) -> Callable[[Path], None]:
    return instead_of_weights(f"{WEIGHTS}.index.json", content)


def dangling_link(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("../blobs/gone")


def odd_adapter(directory: Path) -> None:
    """A base that would be a command, and would move the cursor."""
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x');\x1b[2J evil('"}))


def adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "some-org/base"}')


def grow_vocabulary(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["beyond"] = 9_999
    path.write_text(json.dumps(tokenizer))


def empty_directory(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


@dataclass(frozen=True)
class Case:
    damage: Callable[[Path], None]
    asked: str
    """Regular expressions for the three parts of the message; `{dir}` stands for the directory."""
    found: str
    mend: str


def assert_refused(directory: Path, case: Case) -> None:
    """`resolve` refuses the damaged directory on one screen, with exit code 3 and the three parts of `case`."""
    case.damage(directory)
    with pytest.raises(CheckpointError) as caught:
        resolve(str(directory))
    error = caught.value
    assert error.exit_code == 3
    assert str(directory) in error.asked and re.search(case.asked, error.asked)
    assert re.search(case.found.replace("{dir}", str(directory)), " ".join(error.found)), error.found
    assert re.search(case.mend.replace("{dir}", str(directory)), " ".join(error.mend)), error.mend
    assert len(str(error).splitlines()) <= 12 and "Traceback" not in str(error)
    assert "\x1b" not in str(error)
