"""Tokens per second of stage 3, ours against a straightforward implementation, on a random Qwen3-shaped pair.

    python benchmarks/stage3_speed.py [--device cuda]

The straightforward step makes the logits of teacher and student at every position and gives them to `F.kl_div`, then masks.
Ours is what `plies distill` runs: valid positions first, logits in chunks, no gradient for the frozen head. Both have the
same weights, batches and AdamW, one thread, float32; loss and gradient norm are compared first. `valid` is the share of
positions that count: 1 as in stage 3a, 0.4 as in a stage 3b with long prompts. Memory is the peak resident size (on CUDA:
allocated) above that before the steps, each form in a process of its own. The forms go in turn, and the median round is told with
the ratios of all.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _provenance import provenance
from kl_chunked import resident_kib
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from distill.data import Batch, Stream, Tokens
from distill.recipe.settings import StageConfig, StudentConfig
from distill.students.convert import assembled, new_student
from distill.training.muon import make_optimisers
from distill.training.stages import loss_in, trainable_in
from distill.training.train import clip, loss_and_gradients

VOCABULARY, ROWS, LENGTH, DOCUMENT_TOKENS = 32_768, 8, 256, 128
STEPS = 4
FORMS = ("straightforward", "ours")
STAGE = StageConfig(name="s", kind="3b", data="random", steps=STEPS, rows=ROWS, length=LENGTH, lr=2.5e-5)


def make_pair(device: str) -> tuple[Any, Any]:
    """A teacher of 15M parameters and its student, which keeps attention in two layers of eight."""
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=LENGTH, tie_word_embeddings=True,
    )  # fmt: skip
    teacher = Qwen3ForCausalLM(shape).eval()
    student = assembled(teacher, new_student(teacher, 0, StudentConfig()), (2, 5)).eval()
    return teacher.to(device).requires_grad_(False), student.to(device)


def make_stream(valid: float) -> Stream:
    """Documents of random ids, a share of which are completion."""

    def document(index: int) -> Tokens:
        rng, prompt = random.Random(index), max(1, round((1 - valid) * DOCUMENT_TOKENS))
        ids = [rng.randrange(1, VOCABULARY) for _ in range(DOCUMENT_TOKENS)]
        return Tokens(ids, ((prompt, DOCUMENT_TOKENS),))

    return Stream(document, ROWS, LENGTH, 0.0, 0)


def straightforward(teacher: Any, student: Any, batch: Batch) -> Tensor:
    """Adds the gradients of masked F.kl_div over all logits; returns the loss."""
    given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    with torch.no_grad():
        log_p = teacher(**given).logits[:, :-1].log_softmax(-1)
    log_q = student(**given).logits[:, :-1].log_softmax(-1)
    weights = batch.weights[:, 1:]
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    loss = (kl * weights).sum() / weights.sum()
    loss.backward()
    return loss.detach()


def measure(form: str, valid: float, device: str) -> dict[str, float]:
    """Median tokens per second of a step, peak MiB, first loss and gradient norm. Run in a fresh process."""
    torch.set_num_threads(1)
    teacher, student = make_pair(device)
    trainable, stream = trainable_in(STAGE), make_stream(valid)
    named = [(name, p.requires_grad_(trainable(name))) for name, p in student.named_parameters()]
    named = [(name, p) for name, p in named if p.requires_grad]
    (adamw,) = make_optimisers(named, muon_lr=0.0, adamw_lr=STAGE.lr, weight_decay=0.1, betas=STAGE.betas)
    loss_of = loss_in(STAGE, teacher, student)
    steps: dict[str, Callable[[Batch], Tensor]] = {
        "straightforward": lambda batch: straightforward(teacher, student, batch.to(device)),
        "ours": lambda batch: loss_and_gradients(STAGE, loss_of, batch, torch.device(device)),
    }
    on_gpu, before = device.startswith("cuda"), resident_kib("VmRSS")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() // 1024
    else:
        Path("/proc/self/clear_refs").write_text("5")
    seconds, losses, norms, position = [], [], [], 0
    for _ in range(STEPS):
        batch = stream.batch(position)
        position, started = batch.next_position, time.perf_counter()
        losses.append(steps[form](batch).item())
        norms.append(clip(student, STAGE.clip))
        adamw.step()
        adamw.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() // 1024 if on_gpu else resident_kib("VmHWM")
    return {
        "tokens_per_s": round(ROWS * LENGTH / sorted(seconds[1:])[(STEPS - 1) // 2], 1),
        "peak_mib": round((peak - before) / 1024, 1),
        "loss": losses[0],
        "gradient_norm": norms[0],
        "parameters": sum(p.numel() for p in student.parameters()),
    }


def one_round(valid: float, device: str) -> dict[str, Any]:
    """Both forms one after the other, their answers compared, and ours over the other."""
    found: dict[str, Any] = {}
    for form in FORMS:
        command = [sys.executable, __file__, "--form", form, "--valid", str(valid), "--device", device]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[form] = json.loads(said.splitlines()[-1])
    plain, ours = (found[form] for form in FORMS)
    for key in ("loss", "gradient_norm"):
        assert abs(ours[key] - plain[key]) <= 1e-3 * plain[key], (key, found)
    found["speed_ratio"] = round(ours["tokens_per_s"] / plain["tokens_per_s"], 3)
    found["memory_share"] = round(ours["peak_mib"] / plain["peak_mib"], 3)
    return found


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--valid", type=float, nargs="*", default=[1.0, 0.4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stage3_speed.json"))
    parser.add_argument("--form", choices=FORMS, help="measure one form here and print its JSON")
    asked = parser.parse_args()
    if asked.form:
        print(json.dumps(measure(asked.form, asked.valid[0], asked.device)))
        return
    table = []
    for valid in asked.valid:
        rounds = sorted(
            (one_round(valid, asked.device) for _ in range(asked.rounds)), key=lambda found: found["speed_ratio"]
        )
        table.append({
            "valid": valid, **rounds[len(rounds) // 2], "speed_ratios_of_all_rounds": [found["speed_ratio"] for found in rounds]
        })  # fmt: skip
        print(json.dumps(table[-1]))
    setting = {"vocabulary": VOCABULARY, "rows": ROWS, "length": LENGTH, "device": asked.device, "threads": 1}
    asked.out.write_text(json.dumps({**setting, "table": table, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
