"""Checkpoints that cannot be used: each error says what was found and what to type, on one screen, exit code 3 or 2."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import CheckpointError, MissingError, PliesError, UsageError

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


def index_is_a_list(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / f"{WEIGHTS}.index.json").write_text("[]")


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


CASES = {
    "empty directory": Case(empty_directory, "has no config.json", "nothing", "save_pretrained"),
    "no config": Case(
        remove("config.json"), "has no config.json", "model.safetensors, tokenizer.json", "give a directory"
    ),
    "config is not JSON": Case(replace("config.json", b'{"a": '), "config.json is not JSON", "line 1", "hf download"),
    "config is not text": Case(replace("config.json", b"\xff\xfe\x00"), "config.json is not JSON", "decode", "again"),
    "config is a list": Case(replace("config.json", b"[1]"), "is not an object", "JSON list", "again"),
    "config lacks model_type": Case(
        edit_config(model_type=None), "does not say its model_type", "keys: ", "config.json"
    ),
    "architectures is a string": Case(
        edit_config(architectures="LlamaForCausalLM"), "cannot be used", "expected a list", "again"
    ),
    "encoder-decoder": Case(
        edit_config(is_encoder_decoder=True, model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "is an encoder-decoder",
        "model_type 't5'",
        "ForCausalLM",
    ),
    "masked language model": Case(
        edit_config(architectures=["BertForMaskedLM"]), "not a causal language model", "BertForMaskedLM", "head"
    ),
    "headless": Case(edit_config(architectures=["LlamaModel"]), "not a causal language model", "LlamaModel", "head"),
    "remote code": Case(
        edit_config(auto_map={"AutoModelForCausalLM": "modeling.Own"}),
        "code of its own",
        "modeling.Own",
        "--trust-remote-code",
    ),
    "remote tokenizer code": Case(
        lambda d: edit_json(d / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Own", None]}),
        "code of its own",
        "tok.Own",
        "--trust-remote-code",
    ),
    "no tokenizer": Case(
        remove("tokenizer.json", "tokenizer_config.json"),
        "has no tokenizer",
        "no tokenizer.json in {dir}",
        "cp BASE/tok",
    ),
    "no vocabulary": Case(remove("tokenizer.json"), "has no tokenizer", "no tokenizer.json", "cp BASE/tokenizer"),
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
    "index of another shape": Case(index_is_a_list, "index of shards that cannot be read", "weight_map", "again"),
    "git-lfs pointer": Case(
        replace(WEIGHTS, LFS), "without its large files", "git-lfs pointer", "git -C {dir} lfs pull"
    ),
    "git-lfs config": Case(replace("config.json", LFS), "without its large files", "config.json", "lfs pull"),
    "git-lfs tokenizer": Case(replace("tokenizer.json", LFS), "without its large files", "tokenizer.json", "lfs pull"),
    "adapter of a base that is no name": Case(odd_adapter, "PEFT adapter", "evil", r"from_pretrained\('BASE'\)"),
    "PEFT adapter": Case(adapter, "PEFT adapter", "base some-org/base", r"merge_and_unload\(\)"),
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
    "vocabulary of another size": Case(
        edit_config(vocab_size=300), "do not belong together", "vocab_size 300; embedding: 261 rows", "config.json"
    ),
    "width of another size": Case(
        edit_config(hidden_size=64), "do not belong", "hidden_size 64; embedding: 32", "saved with"
    ),
    "a layer too few": Case(drop_tensors("layers.1."), "do not belong", "no tensors for layer 1", "saved with"),
    "a layer too many": Case(
        edit_config(num_hidden_layers=1), "do not belong", "the weights have 2 layers", "saved with"
    ),
    "a tokenizer of another model": Case(grow_vocabulary, "do not belong", "token ids to 9,999", "tokenizer.json"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_malformed_directory(llama_copy: Path, case: Case) -> None:
    case.damage(llama_copy)
    with pytest.raises(CheckpointError) as caught:
        resolve(str(llama_copy))
    error = caught.value
    assert error.exit_code == 3
    assert str(llama_copy) in error.asked and re.search(case.asked, error.asked)
    assert re.search(case.found.replace("{dir}", str(llama_copy)), " ".join(error.found)), error.found
    assert re.search(case.mend.replace("{dir}", str(llama_copy)), " ".join(error.mend)), error.mend
    assert len(str(error).splitlines()) <= 12 and "Traceback" not in str(error)
    assert "\x1b" not in str(error)


def test_nothing_of_this_is_refused_undamaged(llama_copy: Path) -> None:
    assert resolve(str(llama_copy)).parameters > 0


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


def test_checkpoints_inside_are_named(llama_copy: Path, tmp_path: Path) -> None:
    outer = tmp_path / "trainer-output"
    shutil.copytree(llama_copy, outer / "step-500")
    with pytest.raises(CheckpointError, match="has no config.json") as caught:
        resolve(str(outer))
    assert caught.value.mend == (f"give {outer / 'step-500'}",)


def test_absent_directory_names_what_is_near(llama_copy: Path) -> None:
    with pytest.raises(MissingError) as caught:
        resolve(str(llama_copy) + "s")
    assert caught.value.exit_code == 3
    assert f"did you mean {llama_copy}?" in caught.value.mend
    assert str(llama_copy) in " ".join(caught.value.found)


def test_slip_in_a_path_is_no_hub_id(llama_copy: Path, monkeypatch: pytest.MonkeyPatch, network_attempts: list) -> None:
    monkeypatch.chdir(llama_copy.parent.parent)
    with pytest.raises(MissingError, match="does not exist"):
        resolve(f"{llama_copy.parent.name}/checkpont")
    assert network_attempts == []


def test_file_instead_of_directory(llama_copy: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file, not a directory") as caught:
        resolve(str(llama_copy / WEIGHTS))
    assert caught.value.mend == (f"give that directory: {llama_copy}",)


@pytest.mark.parametrize(
    ("name", "kind", "mend"),
    [
        ("", UsageError, "builtin:teacher"),
        ("builtin:techer", UsageError, "builtin:teacher"),
        ("https://huggingface.co/some-org/some", UsageError, "ORG/NAME"),
        ("no such thing", MissingError, r"ORG/NAME\[@REVISION\]"),
        ("x" * 5000, PliesError, "path"),
    ],
)
def test_strings_that_name_nothing(name: str, kind: type[PliesError], mend: str) -> None:
    with pytest.raises(kind) as caught:
        resolve(name)
    assert caught.value.exit_code == (2 if kind is UsageError else 3)
    assert re.search(mend, " ".join(caught.value.mend))


def test_hub_out_of_reach_tells_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network_attempts: list
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        resolve("some-org/absent@v2")
    assert "hf download some-org/absent --revision v2" in " ".join(caught.value.mend)
    assert len(str(caught.value).splitlines()) <= 6
    assert network_attempts, "the hub must have been asked"
    network_attempts.clear()


@pytest.fixture
def as_nobody(llama_copy: Path) -> Iterator[Path]:
    """A checkpoint outside root's private directories, with the rights of an ordinary user."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        directory = Path(shutil.copytree(llama_copy, Path(root) / "checkpoint"))
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield directory
        finally:
            if was_root:
                os.seteuid(0)
            directory.chmod(0o755)


@pytest.mark.parametrize("locked", [WEIGHTS, "config.json", "tokenizer_config.json", "."])
def test_permission_denied(as_nobody: Path, locked: str) -> None:
    target = as_nobody / locked
    was = os.geteuid()
    if was == 65534:
        os.seteuid(0)
    target.chmod(0)
    os.seteuid(was)
    with pytest.raises(CheckpointError, match="may not be read") as caught:
        resolve(str(as_nobody))
    assert "permission denied" in caught.value.found[0]
    assert "chmod -R u+rX" in caught.value.mend[0]
