"""Log-likelihood scoring: items per second and peak memory of `plies` against plain lm-eval's `hf` model.

    python benchmarks/speed_scoring.py --data HUB [--quick] [--device cuda --shape qwen3-0.6b --dtype bfloat16]

Both sides get the very same requests, made by lm-eval's own tasks (ARC-C 25-shot, HellaSwag 0- and 10-shot, MMLU 5-shot), the
same checkpoint, precision and threads, in turn, each in a process of its own; lm-eval runs at the best of several batch sizes.
On one CPU thread seconds are CPU seconds, which other work on the machine moves less than the clock on the wall.
Predictions are compared first: no speed is printed where they differ. Beside the measured ratio stands the one that counting
tokens and projected logits predicts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from _checkpoints import build
from _provenance import provenance

TASKS: dict[str, dict[str, Any]] = {
    "arc_challenge_25shot": {"yaml": "arc/arc_challenge.yaml", "dataset": "allenai/ai2_arc", "shots": 25, "items": 24},
    "hellaswag_0shot": {"yaml": "hellaswag/hellaswag.yaml", "dataset": "Rowan/hellaswag", "shots": 0, "items": 120},
    "hellaswag_10shot": {"yaml": "hellaswag/hellaswag.yaml", "dataset": "Rowan/hellaswag", "shots": 10, "items": 24},
    "mmlu_5shot": {"yaml": "mmlu/default/mmlu_{}.yaml", "dataset": "cais/mmlu", "shots": 5, "items": 60},
}
MMLU_SUBJECTS = ("astronomy", "marketing")
"""Each with as many items: the header is shared by a whole subject, 173 and 234 items of it in the full test."""
BATCH_SIZES = (1, 4, 16)
TOLERANCE_NATS = {"float32": 2e-3, "bfloat16": 2.0}


def requests_of(name: str, hub: Path, items: int) -> list[Any]:
    """lm-eval's own instances for a task."""
    from lm_eval.tasks import TaskManager

    spec = TASKS[name]
    subjects = MMLU_SUBJECTS if "{}" in spec["yaml"] else ("",)
    import lm_eval

    stock = Path(lm_eval.__file__).parent / "tasks"
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects:
            task = f"{name}_{subject}" if subject else name
            own = {"include": str(stock / spec["yaml"].format(subject)), "task": task, "num_fewshot": spec["shots"]}
            own["dataset_path"] = str(hub / spec["dataset"])
            if spec["dataset"] == "Rowan/hellaswag":
                own["fewshot_split"] = "validation"
            (Path(folder) / f"{task}.yaml").write_text(yaml.safe_dump(own))
        manager = TaskManager(include_defaults=False, include_path=folder)
        for subject in subjects:
            task = f"{name}_{subject}" if subject else name
            loaded = manager.load([task])["tasks"][task]
            loaded.set_fewshot_seed(1234)
            loaded.build_all_requests(limit=items // len(subjects), rank=0, world_size=1)
            found += loaded.instances
    return found


class Peak:
    """Largest resident memory while a block runs, in bytes, above what was in use before.

    What the warm-up freed and the allocator kept is given back first, or the block would seem to need less than it does.
    """

    def __enter__(self) -> Peak:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self.most = _resident()
        self.over = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self.over:
            self.most = max(self.most, _resident())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.over = True
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self.most - self.before


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def side(asked: dict[str, Any]) -> dict[str, Any]:
    """One side on one task, in this process."""
    import torch

    torch.set_num_threads(asked["threads"])
    cuda = asked["device"] == "cuda"
    clock = time.process_time if asked["threads"] == 1 and not cuda else time.perf_counter
    requests = requests_of(asked["task"], Path(asked["hub"]), asked["items"])
    lm, tokens = _plies(asked) if asked["side"] == "plies" else _lm_eval(asked)
    lm.loglikelihood(requests[:4], disable_tqdm=True)  # warm-up
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    with Peak() as peak:
        started = clock()
        answers = lm.loglikelihood(requests, disable_tqdm=True)
        if cuda:
            torch.cuda.synchronize()
        seconds = clock() - started
    peak_bytes = torch.cuda.max_memory_allocated() - held if cuda else peak.bytes
    documents = {(r.task_name, r.doc_id) for r in requests}
    return {
        "seconds": seconds, "items": len(documents), "requests": len(requests), "peak_bytes": peak_bytes,
        "answers": [[float(a), bool(b)] for a, b in answers], "groups": [[r.task_name, r.doc_id] for r in requests],
        "tokens": tokens(requests),
    }  # fmt: skip


def _plies(asked: dict[str, Any]) -> tuple[Any, Any]:
    from perplexity_lies.catalogue.mirror import Mirror
    from perplexity_lies.checkpoint.lookup import resolve
    from perplexity_lies.engines.base import EngineOptions, ScoreRequest
    from perplexity_lies.engines.prefix_tree import computed_tokens
    from perplexity_lies.engines.scoring import TreeScorer
    from perplexity_lies.engines.torch import TorchEngine
    from perplexity_lies.progress import Reporter
    from perplexity_lies.protocols.base import Context
    from perplexity_lies.protocols.lm_eval_door import EngineLM
    from perplexity_lies.record.journal import Journal

    engine = TorchEngine(resolve(asked["checkpoint"]), EngineOptions(device=asked["device"], dtype=asked["dtype"]))
    engine.threads = asked["threads"]
    folder = tempfile.mkdtemp()

    class Fresh(EngineLM):
        """A journal for each call: nothing is answered from the warm-up."""

        def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            path = Path(folder) / f"{time.monotonic_ns()}.jsonl"
            self.context = Context(Mirror(None), None, Journal(path), path, Reporter(quiet=True))
            return super()._loglikelihood_tokens(requests, disable_tqdm)

    lm = Fresh(engine, Context(Mirror(None), None, None, Path(folder), Reporter(quiet=True)), "bench")  # type: ignore[arg-type]

    def tokens(requests: list[Any]) -> dict[str, int]:
        pairs = [lm._encode_pair(*r.args) for r in requests]
        asked_all = [ScoreRequest(context_ids=tuple(c), continuation_ids=tuple(k)) for c, k in pairs]
        tree = TreeScorer(engine.model, asked_all, engine.context_tokens, engine._budget())
        reads = sum(max(len(t.continuation) for t in targets) for targets in tree.targets.values())
        return {"forward": computed_tokens(tree.root), "projected": reads}

    return lm, tokens


def _lm_eval(asked: dict[str, Any]) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from perplexity_lies.engines.loading import register_student

    register_student(json.loads((Path(asked["checkpoint"]) / "config.json").read_text())["model_type"])
    lm = HFLM(
        pretrained=asked["checkpoint"], dtype=asked["dtype"], device=asked["device"], batch_size=asked["batch_size"],
        max_length=4096,
    )  # fmt: skip

    def tokens(requests: list[Any]) -> dict[str, int]:
        pairs = [lm._encode_pair(*r.args) for r in requests]
        inputs = {tuple((c + k)[:-1]) if len(k) == 1 else (*c, *k[:-1], -i) for i, (c, k) in enumerate(pairs)}
        forward = sum(len(ids) if ids[-1] >= 0 else len(ids) - 1 for ids in inputs)
        return {"forward": forward, "projected": forward}

    return lm, tokens


def in_process(**asked: Any) -> dict[str, Any]:
    """`side` in a fresh process."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(asked["threads"]),
    }
    done = subprocess.run(
        [sys.executable, __file__, "--side", json.dumps(asked)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, int, int]:
    """Largest difference in nats, and items of which both rank the same choice first."""
    largest = max(abs(a[0] - b[0]) for a, b in zip(ours["answers"], theirs["answers"], strict=True))
    ranked: list[dict[tuple[str, int], list[float]]] = [{}, {}]
    for table, found in zip(ranked, (ours, theirs), strict=True):
        for key, answer in zip(found["groups"], found["answers"], strict=True):
            table.setdefault(tuple(key), []).append(answer[0])
    same = sum(a.index(max(a)) == ranked[1][k].index(max(ranked[1][k])) for k, a in ranked[0].items())
    return largest, same, len(ranked[0])


def measure(name: str, checkpoint: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one task."""
    items = max(4, TASKS[name]["items"] // (6 if asked.quick else 1))
    common = {"task": name, "hub": str(asked.data), "checkpoint": str(checkpoint), "threads": asked.threads,
              "device": asked.device, "dtype": asked.dtype, "items": items}  # fmt: skip
    sizes = BATCH_SIZES if not asked.quick else (4,)
    probes = {
        size: in_process(**{**common, "items": max(4, items // 6)}, side="lm-eval", batch_size=size)["seconds"]
        for size in sizes
    }
    best = min(probes, key=lambda size: probes[size])
    rounds = [
        (in_process(**common, side="plies"), in_process(**common, side="lm-eval", batch_size=best))
        for _ in range(asked.rounds)
    ]
    largest, same, documents = agreement(*rounds[0])
    row: dict[str, Any] = {
        "items": documents,
        "same_prediction": same,
        "largest_difference_nats": largest,
        "lm_eval_batch_size": best,
    }
    if largest > TOLERANCE_NATS[asked.dtype] or (asked.dtype == "float32" and same != documents):
        return {**row, "error": "answers differ: no speed is reported"}
    ours, theirs = rounds[0]

    def medians(what: str) -> list[float]:
        return [sorted(pair[i][what] for pair in rounds)[len(rounds) // 2] for i in (0, 1)]

    seconds, peaks = medians("seconds"), medians("peak_bytes")
    return {
        **row,
        "items_per_second": {"plies": documents / seconds[0], "lm-eval": documents / seconds[1]},
        "speed_ratio": seconds[1] / seconds[0],
        "speed_ratios_by_round": [round(b["seconds"] / a["seconds"], 2) for a, b in rounds],
        "predicted_by_tokens": predicted(ours["tokens"], theirs["tokens"], checkpoint),
        "tokens": {"plies": ours["tokens"], "lm-eval": theirs["tokens"]},
        "peak_bytes": dict(zip(("plies", "lm-eval"), peaks, strict=True)),
        "memory_ratio": peaks[0] / max(1, peaks[1]),
        "memory_ratios_by_round": [round(a["peak_bytes"] / max(1, b["peak_bytes"]), 3) for a, b in rounds],
    }


def predicted(ours: dict[str, int], theirs: dict[str, int], checkpoint: Path) -> float:
    """Ratio of multiply-adds: every forward token through the layers, every projected one through the vocabulary."""
    config = json.loads((checkpoint / "config.json").read_text())
    d, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    per_token = layers * (2 * d * q + 2 * d * kv + 3 * d * inner)
    per_logit = d * config["vocab_size"]
    cost = [side["forward"] * per_token + side["projected"] * per_logit for side in (ours, theirs)]
    return cost[1] / cost[0]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="30m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--kinds", nargs="*", default=["attention", "hybrid"])
    parser.add_argument("--quick", action="store_true", help="a sixth of the items: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_scoring.json"))
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(side(json.loads(asked.side))))
        return
    if not asked.data.is_dir():
        print(f"speed_scoring: skipped (no mirror at {asked.data})")
        return
    asked.data = asked.data.resolve()
    table: dict[str, Any] = {}
    settings = {key: getattr(asked, key) for key in ("shape", "vocabulary", "dtype", "device", "threads")}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for kind in asked.kinds:
        folder = Path("build/bench") / f"{asked.shape}-{kind}-{asked.vocabulary}"
        checkpoint = build(folder, asked.shape, hybrid=kind == "hybrid", vocabulary=asked.vocabulary, hub=asked.data)
        for name in asked.tasks:
            row = table.setdefault(kind, {})[name] = measure(name, checkpoint.resolve(), asked)
            shown = ("speed_ratio", "predicted_by_tokens", "memory_ratio", "same_prediction", "items", "error")
            print(kind, name, json.dumps({key: row[key] for key in shown if key in row}), flush=True)
            whole = {"settings": settings, "results": table, **provenance()}
            asked.out.write_text(json.dumps(whole, indent=1) + "\n")
    print(asked.out)


if __name__ == "__main__":
    main()
