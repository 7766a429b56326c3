"""Tokens per second and share of the device's peak of every stage of a recipe, on random weights of the teacher's shape.

    python benchmarks/stage_speed.py                  # the miniature recipe, one CPU core
    python benchmarks/stage_speed.py --device cuda    # gendistill-qwen3-0.6b, at 2,048 and 4,096 tokens a row

Each stage runs a few optimiser steps of one micro-batch through the code that trains; FLOPs are those that `plies distill plan`
counts. The result is what `plies distill plan RECIPE --measured benchmarks/results/stage_speed-cpu.json` reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from _provenance import provenance
from torch import nn
from transformers import AutoModelForCausalLM

from distill.data import Stream, Tokens
from distill.plan.cost import DEVICES, Plan, plan
from distill.plan.shapes import kept_layers
from distill.recipe.files import load_recipe
from distill.recipe.settings import Recipe, StageConfig
from distill.students.convert import assembled, new_student
from distill.training.muon import make_optimisers
from distill.training.stages import loss_in, trainable_in
from distill.training.train import clip, loss_and_gradients

WARM_UP, STEPS = 2, 5
RECIPES = {"cpu": ("miniature", ["teacher=builtin:teacher"]), "cuda": ("gendistill-qwen3-0.6b", [])}
LENGTHS = {"cpu": (128, 512), "cuda": (2048, 4096)}


def peak_of(device: str) -> str:
    """Name of this machine's device in the plan's table."""
    if device == "cpu":
        return "cpu"
    found = torch.cuda.get_device_name().lower().replace(" ", "")
    return next(name for name in DEVICES if name in found)


def random_stream(stage: StageConfig, vocabulary: int) -> Stream:
    """Full rows of random ids; in 3b, seven tokens of ten are completion."""
    prompt = 0.3 if stage.kind == "3b" else 1 / stage.length

    def document(index: int) -> Tokens:
        rng = random.Random(index)
        ids = [rng.randrange(4, vocabulary) for _ in range(stage.length)]
        return Tokens(ids, ((max(1, round(prompt * stage.length)), stage.length),))

    return Stream(document, stage.rows, stage.length, stage.prompt_weight, 0)


def seconds_per_step(stage: StageConfig, teacher: Any, student: nn.Module, device: str) -> float:
    """Median seconds of an optimiser step."""
    trainable, loss = trainable_in(stage), loss_in(stage, teacher, student)
    named = [(name, p.requires_grad_(trainable(name))) for name, p in student.named_parameters()]
    optimisers = make_optimisers(
        [(name, p) for name, p in named if p.requires_grad],
        muon_lr=stage.muon_lr, adamw_lr=stage.lr, weight_decay=stage.weight_decay, betas=stage.betas,
    )  # fmt: skip
    stream, taken = random_stream(stage, teacher.config.vocab_size), []
    for number in range(WARM_UP + STEPS):
        batch, started = stream.batch(number * stage.rows), time.perf_counter()
        loss_and_gradients(stage, loss, batch, torch.device(device))
        clip(student, stage.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken[WARM_UP:])[STEPS // 2]


def measured(recipe: Recipe, made: Plan, teacher: Any, device: str, length: int) -> dict[str, dict[str, float]]:
    """Every stage of the recipe at one row length, by kind."""
    student = new_student(teacher, 0, recipe.student).to(device)
    kept = kept_layers(recipe.student, teacher.config.num_hidden_layers)
    models = {"1": student, "2": student, "3": assembled(teacher, student, kept).to(device)}
    found = {}
    for planned in made.stages:
        rows = max(1, (planned.stage.micro_rows or planned.stage.rows) * planned.stage.length // length)
        stage = dataclasses.replace(planned.stage, rows=rows, length=length, micro_rows=0)
        per_token = sum(planned.flops.values()) / planned.tokens
        tokens_per_s = stage.tokens_per_step / seconds_per_step(stage, teacher, models[stage.kind[0]], device)
        peak = DEVICES[made.device]
        flops = peak.bf16_flops if stage.precision == "bf16" else peak.fp32_flops
        found[stage.kind] = {
            "tokens_per_s": round(tokens_per_s, 1),
            "flops_per_token": round(per_token),
            "share_of_peak": round(tokens_per_s * per_token / flops, 4),
        }
        print(length, stage.kind, found[stage.kind], flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name, settings = RECIPES[asked.device]
    peak, by_length, lengths = peak_of(asked.device), {}, LENGTHS[asked.device]
    for length in lengths:
        recipe = load_recipe(name, [*settings, f"stage1.length={length}", f"stage2.length={length}",
                                    f"stage3a.length={length}", f"stage3b.length={length}"])  # fmt: skip
        made = plan(recipe, peak)
        torch.manual_seed(0)
        teacher = (
            AutoModelForCausalLM.from_config(made.teacher.config, dtype=torch.float32)
            .to(asked.device)
            .eval()
            .requires_grad_(False)
        )
        by_length[length] = measured(recipe, made, teacher, asked.device, length)
    result = {"recipe": name, "device": peak, "stages": by_length[lengths[0]], "by_length": by_length, **provenance()}
    out = Path(f"benchmarks/results/stage_speed-{peak}.json")
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
