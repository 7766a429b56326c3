"""`plies distill run` under torchrun: two processes end on the student of one, whole or in shards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SETTINGS = [
    "student.selection_batches=1", "suite=", "defaults.rows=2", "defaults.muon_lr=0", "student.keep=1",
    *(f"stage{kind}.{setting}" for kind in ("1", "2", "3a", "3b") for setting in ("steps=2", "muon_lr=0.0")),
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def student(out: Path, launcher: list[str], *flags: str) -> dict[str, torch.Tensor]:
    """Weights of the student that the command makes."""
    overlays = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, *launcher, "-m", "perplexity_lies.cli", "distill", "run", "miniature"]
    asked = ["--teacher", "builtin:teacher", "--out", str(out), *overlays, *flags]
    done = subprocess.run([*command, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(out / "student" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_make_the_student_of_one(tmp_path: Path) -> None:
    alone = student(tmp_path / "one", [])
    for name, flags in (("two", ()), ("shards", ("--fsdp",))):
        found = student(tmp_path / name, TORCHRUN, *flags)
        assert found.keys() == alone.keys()
        for parameter, value in alone.items():
            torch.testing.assert_close(found[parameter].float(), value.float(), rtol=1 / 128, atol=1e-4, msg=parameter)


def test_shards_of_one_process_are_refused(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "perplexity_lies.cli",
        "distill",
        "run",
        "miniature",
        "--fsdp",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "torchrun" in done.stderr and "Traceback" not in done.stderr
