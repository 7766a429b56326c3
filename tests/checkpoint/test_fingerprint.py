"""What the fingerprint of a checkpoint depends on, and what it does not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.checkpoint.weights import read_tensors
from perplexity_lies.record.manifest import CheckpointFacts

from .damage import edit_json


def reshard(directory: Path, shards: int) -> None:
    """The same tensors cut into `shards` files with an index, in an order that is not theirs."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[shard::shards], file)
    (directory / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_digest_is_its_definition(tiny_llama: Path) -> None:
    digest = hashlib.sha256()
    with safe_open(tiny_llama / "model.safetensors", framework="numpy") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(json.dumps([name, "F32", tensor.shape]).encode() + b"\n" + tensor.tobytes())
    assert resolve(str(tiny_llama)).weights_digest == f"sha256:{digest.hexdigest()}"


def test_parts_are_read_off_the_files(tiny_checkpoint) -> None:
    checkpoint = resolve(str(tiny_checkpoint("qwen3", chat_template=True, dtype="bfloat16")))
    # 2 embeddings of 261 x 32; per layer q, o 32 x 32, k, v 16 x 32, 3 of 64 x 32, norms 2 of 32, 2 of 8; last norm.
    assert checkpoint.parameters == 2 * 261 * 32 + 2 * (2 * 1024 + 2 * 512 + 3 * 2048 + 2 * 32 + 2 * 8) + 32
    assert (checkpoint.model_type, checkpoint.architecture) == ("qwen3", "Qwen3ForCausalLM")
    assert (checkpoint.dtype, checkpoint.kind, checkpoint.revision) == ("bfloat16", "local", "")
    assert checkpoint.has_chat_template and not checkpoint.trust_remote_code and not checkpoint.allow_pickle
    facts = checkpoint.describe()
    assert type(facts) is CheckpointFacts and not hasattr(facts, "path")
    assert all(getattr(facts, field.name) == getattr(checkpoint, field.name) for field in dataclasses.fields(facts))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "gpt2", "mamba"])
def test_families_pass_and_are_counted(tiny_checkpoint, model_type: str) -> None:
    import transformers

    directory = tiny_checkpoint(model_type)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    checkpoint = resolve(str(directory))
    assert checkpoint.architecture == type(model).__name__
    assert checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_headers_agree_with_the_safetensors_library(tiny_llama: Path) -> None:
    tensors = {tensor.name: tensor for tensor in read_tensors("tiny", [tiny_llama / "model.safetensors"])}
    with safe_open(tiny_llama / "model.safetensors", framework="numpy") as file:
        assert set(tensors) == set(file.keys())
        raw = (tiny_llama / "model.safetensors").read_bytes()
        for name, tensor in tensors.items():
            array = np.frombuffer(raw[tensor.start : tensor.stop], np.float32).reshape(tensor.shape)
            assert np.array_equal(array, file.get_tensor(name))


def test_renaming_and_touching_keep_it(llama_copy: Path, tmp_path: Path) -> None:
    before = resolve(str(llama_copy))
    moved = llama_copy.rename(tmp_path / "under another name")
    for file in moved.iterdir():
        os.utime(file, (1, 1))
    after = resolve(str(moved))
    assert after.digest == before.digest and after.name != before.name


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_resharding_keeps_it(llama_copy: Path, shards: int) -> None:
    before = resolve(str(llama_copy))
    reshard(llama_copy, shards)
    after = resolve(str(llama_copy))
    assert (after.digest, after.parameters) == (before.digest, before.parameters)


def test_metadata_and_volatile_keys_keep_it(llama_copy: Path) -> None:
    before = resolve(str(llama_copy))
    tensors = load_file(llama_copy / "model.safetensors")
    save_file(tensors, llama_copy / "model.safetensors", metadata={"format": "pt", "note": "saved by another tool"})
    edit_json(llama_copy / "config.json", _name_or_path="elsewhere", transformers_version="9.9.9")
    edit_json(llama_copy / "tokenizer_config.json", name_or_path="elsewhere")
    (llama_copy / "training_args.bin").write_bytes(b"not weights")
    assert resolve(str(llama_copy)).digest == before.digest


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_one_flipped_bit_changes_it(llama_copy: Path, place: float) -> None:
    before = resolve(str(llama_copy))
    path = llama_copy / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + 4 * int(place * ((len(raw) - start) // 4 - 1))] ^= 1  # the lowest bit of a mantissa
    path.write_bytes(raw)
    after = resolve(str(llama_copy))
    assert after.weights_digest != before.weights_digest and after.digest != before.digest
    assert (after.tokenizer_digest, after.config_digest) == (before.tokenizer_digest, before.config_digest)


def test_another_shape_of_the_same_bytes_changes_it(llama_copy: Path) -> None:
    before = resolve(str(llama_copy))
    tensors = load_file(llama_copy / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    save_file(tensors | {name: tensors[name].reshape(32, 64)}, llama_copy / "model.safetensors")
    assert resolve(str(llama_copy)).weights_digest != before.weights_digest


def test_tokenizer_and_template_change_only_their_part(llama_copy: Path) -> None:
    before = resolve(str(llama_copy))
    (llama_copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with_template = resolve(str(llama_copy))
    assert with_template.has_chat_template and not before.has_chat_template
    edit_json(llama_copy / "tokenizer_config.json", add_bos_token=True)
    with_bos = resolve(str(llama_copy))
    assert len({before.tokenizer_digest, with_template.tokenizer_digest, with_bos.tokenizer_digest}) == 3
    assert before.weights_digest == with_bos.weights_digest and before.config_digest == with_bos.config_digest
    assert before.digest != with_bos.digest


def test_generation_config_enters_the_config_digest(llama_copy: Path) -> None:
    before = resolve(str(llama_copy))
    edit_json(llama_copy / "generation_config.json", eos_token_id=[0, 1])
    assert resolve(str(llama_copy)).config_digest != before.config_digest


def test_an_empty_generation_config_is_not_none(llama_copy: Path) -> None:
    (llama_copy / "generation_config.json").write_text("{}")
    before = resolve(str(llama_copy))
    (llama_copy / "generation_config.json").unlink()
    assert resolve(str(llama_copy)).config_digest != before.config_digest


def test_tokenizer_and_config_digests_are_their_definition(llama_copy: Path) -> None:
    """Fingerprints of earlier runs hold these bytes: length and content of each part, JSON by sorted keys."""
    (llama_copy / "additional_chat_templates").mkdir()
    (llama_copy / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    edit_json(llama_copy / "config.json", odd=float("nan"), letter="ü", _name_or_path="elsewhere")
    stable = {}
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((llama_copy / file).read_text())
        kept = {key: values[key] for key in values if key not in ("_name_or_path", "transformers_version", "is_local")}
        stable[file] = json.dumps(kept, sort_keys=True).encode()
    tokenizer = [b"short.jinja", b"{{ messages }}", b"tokenizer.json", (llama_copy / "tokenizer.json").read_bytes()]
    tokenizer += [b"tokenizer_config.json", stable["tokenizer_config.json"]]
    checkpoint = resolve(str(llama_copy))
    assert checkpoint.tokenizer_digest == over_parts(tokenizer)
    assert checkpoint.config_digest == over_parts([stable["config.json"], stable["generation_config.json"]])
    three = (checkpoint.weights_digest, checkpoint.tokenizer_digest, checkpoint.config_digest)
    assert checkpoint.digest == over_parts([digest.encode() for digest in three])


def over_parts(parts: list[bytes]) -> str:
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return f"sha256:{hashlib.sha256(whole).hexdigest()}"


def test_each_small_file_is_read_once(llama_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    monkeypatch.setattr(Path, "read_text", lambda path, **_: pytest.fail(f"{path} is read as text"))
    resolve(str(llama_copy))
    assert sorted(read) == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def test_remote_code_enters_the_config_digest_where_it_is_allowed(llama_copy: Path) -> None:
    edit_json(llama_copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (llama_copy / "modeling.py").write_text("raise SystemExit('this must not run')\n")
    before = resolve(str(llama_copy), trust_remote_code=True)
    (llama_copy / "modeling.py").write_text("raise SystemExit('nor this')\n")
    after = resolve(str(llama_copy), trust_remote_code=True)
    assert before.config_digest != after.config_digest and before.trust_remote_code


class RunsCode:
    """Pickled, a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_pickle_is_hashed_and_not_opened(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").unlink()
    weights, trace = llama_copy / "pytorch_model.bin", llama_copy / "trace"
    weights.write_bytes(pickle.dumps(RunsCode(f"touch {trace}")))
    pickle.loads(weights.read_bytes())
    assert trace.exists(), "opening this pickle runs code"
    trace.unlink()
    checkpoint = resolve(str(llama_copy), allow_pickle=True)
    assert (checkpoint.allow_pickle, checkpoint.dtype, checkpoint.parameters) == (True, "unknown", 0)
    assert not trace.exists()
    weights.write_bytes(pickle.dumps(RunsCode("true")))
    assert resolve(str(llama_copy), allow_pickle=True).weights_digest != checkpoint.weights_digest


def test_safetensors_are_preferred_to_pickle(llama_copy: Path) -> None:
    before = resolve(str(llama_copy))
    (llama_copy / "pytorch_model.bin").write_bytes(b"never read")
    assert resolve(str(llama_copy)).digest == before.digest
    assert resolve(str(llama_copy), allow_pickle=True).digest == before.digest


def test_own_student_type_needs_no_flag(llama_copy: Path) -> None:
    edit_json(llama_copy / "config.json", model_type="plies_hybrid", auto_map={"AutoConfig": "x.Y"})
    assert resolve(str(llama_copy)).model_type == "plies_hybrid"


def test_quantised_checkpoints_pass(llama_copy: Path) -> None:
    tensors = load_file(llama_copy / "model.safetensors")
    packed = {name: np.zeros((4, 4), np.uint8) if "embed" in name else tensor for name, tensor in tensors.items()}
    save_file(packed, llama_copy / "model.safetensors")
    edit_json(llama_copy / "config.json", quantization_config={"quant_method": "some"})
    assert resolve(str(llama_copy)).dtype == "float32"


def test_relative_path_and_home(llama_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    digests = {resolve(name).digest for name in ("checkpoint", "./checkpoint", "~/checkpoint", str(llama_copy))}
    assert len(digests) == 1


def test_hub_snapshot_in_the_cache_needs_no_network(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some-org--tiny"
    shutil.copytree(tiny_llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    checkpoint = resolve("some-org/tiny")
    assert (checkpoint.kind, checkpoint.revision) == ("hub", commit)
    assert checkpoint.digest == resolve(str(tiny_llama)).digest == resolve(f"some-org/tiny@{commit}").digest


def test_real_pretrained_checkpoints(shared_models: Path) -> None:
    found = {path.name: resolve(str(path)) for path in sorted(shared_models.iterdir()) if path.is_dir()}
    assert {"cardputer-chat-3m", "stories260K", "tinystories-656k"} <= set(found)
    assert found["cardputer-chat-3m"].model_type == "gpt_neo" and found["cardputer-chat-3m"].has_chat_template
    assert found["stories260K"].parameters == 260_032 and found["tinystories-656k"].dtype == "float32"
    assert len({checkpoint.digest for checkpoint in found.values()}) == len(found)


METER = """
import sys
from perplexity_lies.checkpoint import weights
from perplexity_lies.checkpoint.lookup import resolve
weights.QUIET_S, weights.CHUNK_BYTES = float(sys.argv[2]), 1 << 12
resolve(sys.argv[1])
"""


@pytest.mark.parametrize(("quiet_s", "terminal", "shown"), [(-1, True, True), (60, True, False), (-1, False, False)])
def test_progress_on_a_terminal_and_not_before_its_time(
    tiny_llama: Path, quiet_s: float, terminal: bool, shown: bool
) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", METER, str(tiny_llama), str(quiet_s)]
    subprocess.run(command, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"})
    os.set_blocking(ours, False)
    try:
        written = os.read(ours, 1 << 16)
    except BlockingIOError:
        written = b""
    os.close(ours)
    os.close(theirs)
    assert (b"hashing" in written) is shown
    assert written == b"" or shown
