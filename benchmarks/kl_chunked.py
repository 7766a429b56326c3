"""Memory and time of stage 3's loss at Qwen3's vocabulary: chunked (`distill.training.losses`) against the plain computation.

    python benchmarks/kl_chunked.py

Forward KL(teacher || student) and its gradient to the student's hidden states, float32, one thread, head frozen and shared as in
GenDistill. The plain computation makes both logits and both log-softmaxes of all rows and leaves the rest to autograd.
Each measurement is a process of its own, the two forms in turns; memory is how far the peak resident size (VmHWM, reset before
the loss) rises above what the inputs take, time is the process's CPU time (other work on the machine counts for little in it).
Loss and gradient of the two are compared first. Reported is the median over the processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _provenance import provenance
from torch import Tensor

from distill.training.losses import chunked_kl

VOCABULARY = 151_936
ROUNDS, PROCESSES = 2, 5


def inputs(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's and teacher's hidden states, the head, weights; the same in every process."""
    torch.manual_seed(0)
    head = torch.randn(VOCABULARY, width) * 0.05
    teacher = torch.randn(rows, width)
    student = (teacher + 0.3 * torch.randn(rows, width)).requires_grad_()
    return student, teacher, head, torch.rand(rows)


def plain_kl(student: Tensor, teacher: Tensor, head: Tensor, weights: Tensor) -> Tensor:
    """By the definition."""
    with torch.no_grad():
        log_p = (teacher @ head.mT).log_softmax(-1)
    log_q = (student @ head.mT).log_softmax(-1)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * weights).sum()


def chunked(student: Tensor, teacher: Tensor, head: Tensor, weights: Tensor) -> Tensor:
    """Runs the loss as stage 3 does."""
    return chunked_kl(student, head, teacher, head, weights)


FORMS = {"plain": plain_kl, "chunked": chunked}


def resident_kib(key: str) -> int:
    """A line of this process's status: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(form: str, rows: int, width: int) -> dict[str, float]:
    """Peak MiB above the inputs, CPU seconds of the faster round, loss and gradient norm. Run in a fresh process."""
    torch.set_num_threads(1)
    given = inputs(rows, width)
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = resident_kib("VmRSS"), []
    for _ in range(ROUNDS):
        given[0].grad = None
        started = time.process_time()
        loss = FORMS[form](*given)
        loss.backward()
        seconds.append(time.process_time() - started)
    grad = given[0].grad
    assert grad is not None
    return {
        "peak_mib": round((resident_kib("VmHWM") - before) / 1024, 1),
        "cpu_s": round(min(seconds), 3),
        "loss": loss.item(),
        "gradient_norm": grad.norm().item(),
    }


def compare(rows: int, width: int) -> dict[str, Any]:
    """Both forms at this many rows: medians over processes, and the share that the chunked form has of the plain one's."""
    found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for _ in range(PROCESSES):
        for form, runs in found.items():
            command = [sys.executable, __file__, "--form", form, "--rows", str(rows), "--width", str(width)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    middle = {
        form: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for form, runs in found.items()
    }
    plain, ours = middle["plain"], middle["chunked"]
    for key in ("loss", "gradient_norm"):
        assert abs(ours[key] - plain[key]) <= 1e-4 * plain[key], (key, found)
    shares = {"memory_share": ours["peak_mib"] / plain["peak_mib"], "time_share": ours["cpu_s"] / plain["cpu_s"]}
    spread = {f"{form}_cpu_s": sorted(run["cpu_s"] for run in runs) for form, runs in found.items()}
    return {"rows": rows, **middle, **{name: round(share, 4) for name, share in shares.items()}, **spread}


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kl_chunked.json"))
    parser.add_argument("--form", choices=FORMS, help="measure one form in this very process and print its JSON")
    asked = parser.parse_args()
    if asked.form:
        print(json.dumps(measure(asked.form, asked.rows[0], asked.width)))
        return
    table = []
    for rows in asked.rows:
        table.append(compare(rows, asked.width))
        print(json.dumps(table[-1]), flush=True)
    result = {"vocabulary": VOCABULARY, "width": asked.width, "dtype": "float32", "threads": 1, "processes": PROCESSES}
    asked.out.write_text(json.dumps({**result, "table": table, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
