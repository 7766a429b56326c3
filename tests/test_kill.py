"""A run that is killed ten times and started again ends with the bytes of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

KILLS = 10
DIFFERENT = 3
"""Kills that must have met a run at work: replies end in groups, so that two moments may fall together."""
POLL_S = 0.005
SEED = 20

GROWING_TOKENS, SAMPLED_TOKENS = 96, 250
"""Enough that replies end over some seconds, one after another."""


@dataclass(frozen=True)
class Killed:
    """One start of the command that was to be killed."""

    finished: bool
    """It came to its end before it could be killed."""
    before: int
    after: int
    """Its progress."""


def write_suite(folder: Path, count: int = 60) -> Path:
    asked = [
        {
            "id": f"i{i}", "subject": f"s{i % 12}", "question": f"{i} + {i % 7} = ?" + " again" * (i % 5),
            "choices": [f"{i + i % 7}", f"{i} apples", "none"], "gold": i % 3, "target": str(i % 10),
        }
        for i in range(count)
    ]  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in asked))
    shared = {"items": "items.jsonl", "extract": r"(\d)", "chat_template": False}
    tasks = [
        {"name": "greedy", "max_new_tokens": GROWING_TOKENS, **shared},
        {"name": "sampled", "max_new_tokens": SAMPLED_TOKENS, "temperature": 1.0, "seeds": [3], **shared},
    ]
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": tasks}))
    return folder / "own.yaml"


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("runs/*/responses/*.jsonl"))


def start(command: list[str], out: Path, scratch: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    with (scratch / "said").open("ab") as said:
        return subprocess.Popen(
            [*command, "--out", str(out)], stdout=said, stderr=said, env=environment, start_new_session=True
        )


def progress(out: Path) -> int:
    """Whole lines of the journals and files of records: what a run leaves behind, in the order it leaves it."""
    return lines(out) + len(list(out.glob("runs/*/records/*.jsonl")))


def kill_at(moment: int, command: list[str], out: Path, scratch: Path) -> Killed:
    """Starts the command and kills it once its progress has reached the moment, however quick the machine is."""
    before = progress(out)
    process = start(command, out, scratch)
    while process.poll() is None:
        if progress(out) >= moment:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            time.sleep(POLL_S)
    return Killed(process.returncode == 0, before, progress(out))


@pytest.mark.slow
def test_run_killed_ten_times_ends_with_the_same_bytes(
    tiny_llama: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    teacher, student = str(tiny_llama), str(tiny_checkpoint("llama", seed=1))
    suite = str(write_suite(tmp_path))
    command = [sys.executable, "-m", "perplexity_lies.cli", "compare", teacher, student, "--suite", suite]
    command += ["--device", "cpu"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(command, whole, tmp_path).wait() == 0, (tmp_path / "said").read_text()

    # Later moments last: an early one after a late one would only meet what is done already.
    moments = sorted(random.Random(SEED).sample(range(1, progress(whole)), KILLS))
    kills = [kill_at(moment, command, broken, tmp_path) for moment in moments]
    assert start(command, broken, tmp_path).wait() == 0, (tmp_path / "said").read_text()

    told = f"{progress(whole)} lines and files uninterrupted, killed at {moments}: {kills}"
    assert len([kill for kill in kills if not kill.finished and kill.after > kill.before]) >= DIFFERENT, told
    asked = lines(broken) / lines(whole)
    assert asked < 1.5, f"what stood in the journals was asked again ({asked:.2f} times as many lines): {told}"
    assert all(kill.after >= kill.before for kill in kills), told

    files = sorted(path.relative_to(whole) for path in whole.rglob("*.json*") if path.parent.name in ("records",))
    files += sorted(path.relative_to(whole) for path in whole.glob("*/comparison.json"))
    assert len(files) == 2 * 2 * 2 + 1
    assert sorted(p.relative_to(broken) for p in broken.glob("runs/*/records/*")) == files[:-1]
    for file in files:
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), f"{file} differs; {told}"
    assert b"wall_s" not in (whole / files[-1]).read_bytes()
    assert "Traceback" not in (tmp_path / "said").read_text(errors="replace")
