"""Chunked KDA: time and memory against the loop over time and against fla's chunked reference in PyTorch.

    python benchmarks/kda_chunked.py [--quick] [--device cuda]

Four heads of 128 (a quarter of a layer of Qwen3-0.6B) on one row, float32, by length, forward and forward with backward, in
turn; CPU seconds of one thread, or seconds on CUDA. Outputs are compared first: no ratio is printed where they differ. Memory is
what autograd keeps for the backward pass. fla's
reference (`fla.ops.kda.naive.naive_chunk_kda`, 64 tokens a chunk) is taken where flash-linear-attention is installed; on CUDA its
kernel, behind the door that the students use, is timed too. A ratio above 1 means that ours takes less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _provenance import provenance
from torch import Tensor

from distill.students.fla import delta, installed_kernels
from distill.students.recurrence import chunked_delta, recurrent_delta

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
HEADS, WIDTH = 4, 128
TOLERANCE = 1e-4
"""Largest difference from the loop's outputs, whose size is about 1."""

Form = Callable[..., tuple[Tensor, Tensor]]


def fla_reference() -> Form | None:
    """fla's chunked KDA in PyTorch with our arguments; None where fla is not installed."""
    try:
        from fla.ops.kda.naive import naive_chunk_kda
    except ImportError:
        return None

    def form(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = naive_chunk_kda(
            q, k, v, g, beta, scale=1.0, initial_state=state, output_final_state=True
        )
        return found

    return form


def random_inputs(length: int, device: str) -> list[Tensor]:
    """q, k, v, g, beta, state of one row; gates as a student has them at its start."""
    shape = (1, length, HEADS, WIDTH)
    q, k = (F.normalize(torch.randn(shape), dim=-1) for _ in range(2))
    g = -torch.rand(HEADS, 1).mul(15).add(1) * F.softplus(torch.randn(shape) - 4)
    inputs = (q, k, torch.randn(shape), g, torch.rand(shape[:3]), torch.zeros(1, HEADS, WIDTH, WIDTH))
    return [x.to(device).requires_grad_() for x in inputs]


def seconds_of(run: Callable[[], Any], device: str, rounds: int) -> float:
    """Least time of several."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    found = []
    for _ in range(rounds):
        started = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - started)
    return min(found)


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, each storage once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in storages.values())


def measure(form: Form, inputs: list[Tensor], device: str, rounds: int) -> dict[str, float]:
    """Seconds forward, seconds forward with backward, bytes kept between the two."""

    def forward() -> None:
        with torch.inference_mode():
            form(*inputs)

    def both() -> None:
        out, state = form(*inputs)
        torch.autograd.grad(out.sum() + state.sum(), inputs)

    return {
        "forward_s": seconds_of(forward, device, rounds),
        "forward_backward_s": seconds_of(both, device, rounds),
        "kept_bytes": kept_bytes(lambda: form(*inputs)),
    }


def compare(length: int, forms: dict[str, Form], device: str, rounds: int) -> dict[str, Any]:
    """Every form at one length, and the ratios of the others to ours."""
    inputs = random_inputs(length, device)
    with torch.inference_mode():
        outputs = {name: form(*inputs)[0] for name, form in forms.items()}
    differences = {name: float((out - outputs["loop"]).abs().max()) for name, out in outputs.items()}
    row: dict[str, Any] = {"largest_difference_from_loop": differences}
    if differences["chunked"] > TOLERANCE:
        return {**row, "error": "outputs differ: no ratio is reported"}
    row["measured"] = {name: measure(form, inputs, device, rounds) for name, form in forms.items()}
    ours = row["measured"]["chunked"]
    row["ratio_to_chunked"] = {
        name: {key.removesuffix("_s"): found[key] / ours[key] for key in ours}
        for name, found in row["measured"].items()
        if name != "chunked"
    }
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--quick", action="store_true", help="two short lengths, once: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kda_chunked.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    lengths, rounds = ((64, 128), 1) if asked.quick else (asked.lengths, asked.rounds)
    forms: dict[str, Form] = {"loop": recurrent_delta, "chunked": chunked_delta}
    reference = fla_reference()
    if reference is None:
        print("kda_chunked: fla's reference left out (flash-linear-attention is not installed)")
    else:
        forms["fla reference"] = reference
    if asked.device == "cuda" and installed_kernels():
        forms["fla kernel"] = delta
    compare(64, forms, asked.device, 1)  # warm-up
    table: dict[str, Any] = {}
    settings = {"device": asked.device, "threads": asked.threads, "heads": HEADS, "width": WIDTH, "rounds": rounds}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for length in lengths:
        row = table[str(length)] = compare(length, forms, asked.device, rounds)
        shown = {n: {k: round(r, 2) for k, r in found.items()} for n, found in row.get("ratio_to_chunked", {}).items()}
        print(length, json.dumps(shown or row), flush=True)
        asked.out.write_text(json.dumps({"settings": settings, "results": table, **provenance()}, indent=1) + "\n")
    print(asked.out)


if __name__ == "__main__":
    main()
