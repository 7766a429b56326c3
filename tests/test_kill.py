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
EARLIEST_S = 2.0
SEED = 20

GROWING_TOKENS, SAMPLED_TOKENS = 96, 250
"""Enough that replies end over some seconds, one after another."""


@dataclass(frozen=True)
class Killed:
    """One start of the command that was to be killed."""

    finished: bool
    """It came to its end before its moment."""
    lines_before: int
    lines_after: int
    """Whole lines of the journals."""
    records: int
    """Files of records after it."""


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


def kill_after(seconds: float, command: list[str], out: Path, scratch: Path) -> Killed:
    before = lines(out)
    process = start(command, out, scratch)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    records = len(list(out.glob("runs/*/records/*.jsonl")))
    return Killed(process.returncode == 0, before, lines(out), records)


@pytest.mark.slow
def test_run_killed_ten_times_ends_with_the_same_bytes(
    tiny_llama: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    teacher, student = str(tiny_llama), str(tiny_checkpoint("llama", seed=1))
    suite = str(write_suite(tmp_path))
    command = [sys.executable, "-m", "perplexity_lies.cli", "compare", teacher, student, "--suite", suite]
    command += ["--device", "cpu"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    began = time.monotonic()
    assert start(command, whole, tmp_path).wait() == 0, (tmp_path / "said").read_text()
    duration = time.monotonic() - began

    # Later moments last: an early one after a late one would only meet what is done already.
    moments = sorted(random.Random(SEED).uniform(EARLIEST_S, duration) for _ in range(KILLS))
    kills = [kill_after(seconds, command, broken, tmp_path) for seconds in moments]
    assert start(command, broken, tmp_path).wait() == 0, (tmp_path / "said").read_text()

    told = f"{duration:.1f} s uninterrupted, killed at {[round(s, 1) for s in moments]}: {kills}"
    assert not kills[0].finished, told
    at_work = [kill for kill in kills if not kill.finished and kill.lines_after > kill.lines_before]
    assert at_work, f"no kill landed during scoring or generation: {told}"
    assert any(kill.lines_before > 0 for kill in kills), f"nothing was continued: {told}"
    assert all(kill.lines_after >= kill.lines_before for kill in kills), told

    files = sorted(path.relative_to(whole) for path in whole.rglob("*.json*") if path.parent.name in ("records",))
    files += sorted(path.relative_to(whole) for path in whole.glob("*/comparison.json"))
    assert len(files) == 2 * 2 * 2 + 1
    assert sorted(p.relative_to(broken) for p in broken.glob("runs/*/records/*")) == files[:-1]
    for file in files:
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), f"{file} differs; {told}"
    assert b"timings" not in (whole / files[-1]).read_bytes()
    assert "Traceback" not in (tmp_path / "said").read_text(errors="replace")
