"""A checkpoint that cannot be used, from the command line: one screen on stderr, an exit code, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("plies")


def evaluate(checkpoint: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`plies evaluate CHECKPOINT` on the bundled suite, hub switched off."""
    command = [
        str(COMMAND),
        "evaluate",
        checkpoint,
        "--suite",
        "miniature",
        "--limit",
        "1",
        "--out",
        str(out),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=out)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", b"", "empty weights file"),
        ("config.json", b"{", "config.json is not JSON"),
        ("tokenizer.json", None, "has no tokenizer"),
    ],
)
def test_damaged(llama_copy: Path, tmp_path: Path, file: str, content: bytes | None, words: str) -> None:
    (llama_copy / file).unlink()
    if content is not None:
        (llama_copy / file).write_bytes(content)
    done = evaluate(str(llama_copy), tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr and "  found: " in done.stderr and "  try  : " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 12


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("./nowhere", 3, "does not exist"),
        ("some-org/absent", 3, "hf download some-org/absent"),
        ("builtin:techer", 2, "did you mean 'teacher'?"),
        ("https://example.org/x", 2, "is an address"),
    ],
)
def test_absent(tmp_path: Path, name: str, code: int, words: str) -> None:
    done = evaluate(name, tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr and "Traceback" not in done.stderr


def test_flags_are_passed_on(llama_copy: Path, tmp_path: Path) -> None:
    (llama_copy / "model.safetensors").rename(llama_copy / "pytorch_model.bin")
    assert "--allow-pickle" in evaluate(str(llama_copy), tmp_path).stderr
    allowed = evaluate(str(llama_copy), tmp_path, "--allow-pickle")
    assert allowed.returncode == 3 and "weights that torch.save did not write" in allowed.stderr
    config = json.loads((llama_copy / "config.json").read_text())
    (llama_copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Config"}}))
    assert "--trust-remote-code" in evaluate(str(llama_copy), tmp_path).stderr
    trusted = evaluate(str(llama_copy), tmp_path, "--trust-remote-code")
    assert trusted.returncode == 3 and "as pickle only" in trusted.stderr
