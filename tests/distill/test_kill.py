"""`plies distill run`, killed without warning: the same command ends with the weights of a run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = [
    "student.selection_batches=2", "suite=", "defaults.rows=4", "defaults.save_every=3",
    *(f"stage{kind}.steps=10" for kind in ("1", "2", "3a")), "stage3b.steps=30",
]  # fmt: skip
"""The last stage is the longest, for no machine to end it before it can be killed."""
STARTS = ("align-qk", "align-mixer", "distil", "instruct")
KILLS = 3


def command(out: Path) -> list[str]:
    """The command under test."""
    overlays = [word for setting in SETTINGS for word in ("--set", setting)]
    asked = ["distill", "run", "miniature", "--teacher", "builtin:teacher", "--out", str(out)]
    return [sys.executable, "-m", "perplexity_lies.cli", *asked, *overlays]


def wait_for(out: Path, stage: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when a stage has begun to train, or the run has ended."""
    while process.poll() is None and not list(out.glob(f"stages/{stage}-*/*.pt")):
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_three_moments_it_ends_with_identical_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    rng, kills = random.Random(), 0
    for stage in sorted(rng.sample(STARTS, KILLS), key=STARTS.index):
        with subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_for(killed, stage, process)
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills == KILLS and not (killed / "student").exists()
    subprocess.run(command(killed), check=True, capture_output=True)
    name = "student/model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
