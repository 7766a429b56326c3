"""Seconds from typing a command to the first answered item, imports and loading included.

    python benchmarks/first_item.py --data HUB

Runs `plies evaluate` on the smoke suite in a fresh process and output folder and watches for the first line of the journal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _provenance import provenance

PATIENCE_S = 300


def seconds_to_first_item(checkpoint: str, hub: Path) -> float:
    """Wall time of one command until its first answer is on disk; the command is then ended."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "perplexity_lies.cli", "evaluate", checkpoint, "--suite", "smoke", "--data", str(hub),
                   "--limit", "50", "--out", out]  # fmt: skip
        started = time.perf_counter()
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while time.perf_counter() - started < PATIENCE_S:
                journals = Path(out).glob("runs/*/responses/*.jsonl")
                # the guard leaves its own few lines first: an item is there when there are more
                if any(len(journal.read_bytes().splitlines()) > 20 for journal in journals):
                    return time.perf_counter() - started
                time.sleep(0.02)
            raise RuntimeError(f"no item within {PATIENCE_S} s")
        finally:
            running.kill()
            running.wait()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="../shared/models/stories260K")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/first_item.json"))
    asked = parser.parse_args()
    if not asked.data.is_dir():
        print(f"first_item: skipped (no mirror at {asked.data})")
        return
    seconds = [round(seconds_to_first_item(asked.checkpoint, asked.data), 2) for _ in range(asked.rounds)]
    print("seconds to the first item:", seconds)
    asked.out.write_text(json.dumps({"seconds": seconds, "suite": "smoke", **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
