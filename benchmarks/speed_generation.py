"""Greedy generation: replies per second of `plies` against evalscope's local inference and static batches of HF `generate`.

    python benchmarks/speed_generation.py --data HUB [--quick] [--device cuda --shape qwen3-0.6b --dtype bfloat16]

GSM8K questions with four worked examples, as evalscope asks them; replies end after a hundred tokens or so, some at once, some
never (see _checkpoints.py). Every side gets the same prompts, checkpoint, precision, budget, threads and rows at a time, in a
process of its own; `plies` also with as many slots as it takes by itself. Replies are compared first, and no speed is printed
unless all are equal in fp32. A hybrid checkpoint is compared with `generate` one row at a time: left padding, which its peers
need to batch it, is not what is measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _checkpoints import build
from _provenance import provenance
from speed_scoring import Peak

SIDES = {
    "attention": ("plies", "plies-own-slots", "evalscope", "generate"),
    "hybrid": ("plies", "plies-own-slots", "generate-one"),
}
SHOTS = 4


def questions(hub: Path, items: int) -> list[str]:
    """User messages of evalscope's GSM8K benchmark, by its own adapter."""
    from evalscope import TaskConfig
    from evalscope.api.registry import get_benchmark

    config = TaskConfig(
        model="none", datasets=["gsm8k"], limit=items, dataset_hub="local",
        dataset_args={"gsm8k": {"local_path": str(hub / "openai/gsm8k"), "few_shot_num": SHOTS}},
    )  # fmt: skip
    loaded = get_benchmark("gsm8k", config).load_dataset()
    return [sample.input[-1].text for samples in loaded.values() for sample in samples]


def side(asked: dict[str, Any]) -> dict[str, Any]:
    """One side, in this process: replies by question, seconds, peak memory."""
    import torch

    torch.set_num_threads(asked["threads"])
    texts = questions(Path(asked["hub"]), asked["items"])
    answer: Callable[[list[str]], list[str]] = {
        "plies": _plies,
        "plies-own-slots": _plies,
        "evalscope": _evalscope,
    }.get(asked["side"], _generate)(asked)
    answer(texts[:2])
    if asked["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Peak() as peak:
        started = time.perf_counter()
        replies = answer(texts)
        seconds = time.perf_counter() - started
    peak_bytes = torch.cuda.max_memory_allocated() if asked["device"] == "cuda" else peak.bytes
    return {"seconds": seconds, "replies": replies, "peak_bytes": peak_bytes}


def _plies(asked: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    from perplexity_lies.checkpoint.lookup import resolve
    from perplexity_lies.engines.base import EngineOptions, GenerateRequest
    from perplexity_lies.engines.torch import TorchEngine

    slots = EngineOptions().slots if asked["side"] == "plies-own-slots" else asked["rows"]
    options = EngineOptions(device=asked["device"], dtype=asked["dtype"], slots=slots)
    engine = TorchEngine(resolve(asked["checkpoint"]), options)
    engine.threads = asked["threads"]

    def answer(texts: list[str]) -> list[str]:
        prompts = [engine.render_chat([{"role": "user", "content": text}]) for text in texts]
        requests = [
            GenerateRequest(prompt=prompt, add_special_tokens=True, max_new_tokens=asked["budget"])
            for prompt in prompts
        ]
        found = {result.key: result.text for batch in engine.generate(requests) for result in batch}
        return [found[request.key] for request in requests]

    return answer


def _evalscope(asked: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    from evalscope.api.messages import ChatMessageUser
    from evalscope.api.model import GenerateConfig
    from evalscope.models.modelscope import ModelScopeAPI

    api = ModelScopeAPI(asked["checkpoint"], precision=asked["dtype"], device_map=asked["device"])
    config = GenerateConfig(max_tokens=asked["budget"], do_sample=False, batch_size=asked["rows"])

    def answer(texts: list[str]) -> list[str]:
        with ThreadPoolExecutor(asked["rows"]) as pool:
            calls = [pool.submit(api.generate, [ChatMessageUser(content=text)], [], "none", config) for text in texts]
            return [call.result().message.text for call in calls]

    return answer


def _generate(asked: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    import torch
    import transformers

    from perplexity_lies.engines.loading import register_student

    register_student(json.loads((Path(asked["checkpoint"]) / "config.json").read_text())["model_type"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked["checkpoint"], padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(asked["checkpoint"], dtype=getattr(torch, asked["dtype"]))
    model = model.to(asked["device"]).eval()
    rows = 1 if asked["side"] == "generate-one" else asked["rows"]

    def answer(texts: list[str]) -> list[str]:
        replies: list[str] = []
        for start in range(0, len(texts), rows):
            prompts = [f"user: {text}\n" for text in texts[start : start + rows]]  # as evalscope writes a chat
            batch = tokenizer(prompts, return_tensors="pt", padding=True).to(asked["device"])
            with torch.inference_mode():
                whole = model.generate(**batch, max_new_tokens=asked["budget"], do_sample=False)
            new = whole[:, batch["input_ids"].shape[1] :]
            replies += tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return replies

    return answer


def in_process(**asked: Any) -> dict[str, Any]:
    """`side` in a fresh process."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(asked["threads"]),
    }
    command = [sys.executable, __file__, "--side", json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str, checkpoint: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Every side of one kind of checkpoint, in turn."""
    common = {"checkpoint": str(checkpoint), "hub": str(asked.data), "threads": asked.threads, "device": asked.device,
              "dtype": asked.dtype, "items": asked.items, "budget": asked.budget, "rows": asked.rows}  # fmt: skip
    found = {name: in_process(**common, side=name) for name in SIDES[kind]}
    ours = found["plies"]
    row: dict[str, Any] = {
        "items": asked.items,
        "words_in_replies": sorted(len(r.split()) for r in ours["replies"])[:: max(1, asked.items // 8)],
    }
    for name, peer in found.items():
        if name == "plies":
            continue
        same = sum(a == b for a, b in zip(ours["replies"], peer["replies"], strict=True))
        row[name] = {"same_reply": same}
        if same < asked.items and asked.dtype == "float32":
            row[name]["error"] = "replies differ: no speed is reported"
            continue
        row[name]["speed_ratio"] = peer["seconds"] / ours["seconds"]
        row[name]["speed_ratio_of_own_slots"] = peer["seconds"] / found["plies-own-slots"]["seconds"]
        row[name]["memory_ratio"] = ours["peak_bytes"] / max(1, peer["peak_bytes"])
    row["replies_per_second"] = {name: asked.items / side["seconds"] for name, side in found.items()}
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="30m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--rows", type=int, default=8, help="slots, and the peers' batch size (evalscope's own is 8)")
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--kinds", nargs="*", default=["attention", "hybrid"])
    parser.add_argument("--quick", action="store_true", help="eight items: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_generation.json"))
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(side(json.loads(asked.side))))
        return
    if not asked.data.is_dir():
        print(f"speed_generation: skipped (no mirror at {asked.data})")
        return
    asked.data = asked.data.resolve()
    asked.items = 8 if asked.quick else asked.items
    table = {}
    for kind in asked.kinds:
        folder = Path("build/bench") / f"{asked.shape}-{kind}-{asked.vocabulary}"
        checkpoint = build(folder, asked.shape, hybrid=kind == "hybrid", vocabulary=asked.vocabulary, hub=asked.data)
        table[kind] = measure(kind, checkpoint.resolve(), asked)
        print(kind, json.dumps(table[kind]), flush=True)
    settings = {
        k: getattr(asked, k) for k in ("shape", "vocabulary", "dtype", "device", "threads", "rows", "budget", "items")
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"settings": settings, "results": table, **provenance()}, indent=1) + "\n")
    print(asked.out)


if __name__ == "__main__":
    main()
