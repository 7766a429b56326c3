"""Item by item: `plies` against plain lm-eval (its own `hf` model) and plain evalscope (its own checkpoint loading), fp32.

    python benchmarks/parity_smoke.py CHECKPOINT... --data HUB --limit 50

For each checkpoint: the same predictions under log-likelihood and log-likelihoods within 1e-3 nats; the same greedy replies,
extracted answers and scores under generation. Prints the counts, writes them as JSON, and exits 1 when anything differs.
The stock tools run in processes of their own, from the mirror's folder, with nothing of ours in between.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _provenance import provenance

from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite, TaskSpec
from perplexity_lies.protocols.base import item_name
from perplexity_lies.protocols.generation import Generation
from perplexity_lies.protocols.loglikelihood import Loglikelihood
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.run import evaluate
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

NATS = 1e-3
"""Largest difference of a continuation's log-likelihood that counts as equal."""

RENAMED = {"default": "winogrande"}
"""Stem of an lm-eval task's file -> the task, where they differ."""

EVALSCOPE = """
import json, sys
from evalscope import TaskConfig, run_task
asked = json.loads(sys.argv[1])
run_task(TaskConfig(
    model=asked["checkpoint"], model_id="plain", eval_type="llm_ckpt", model_args={"precision": "float32", "device_map": "cpu"},
    datasets=[asked["benchmark"]], dataset_args={asked["benchmark"]: asked["dataset_args"]}, dataset_hub="local",
    generation_config={"max_tokens": asked["max_tokens"], "do_sample": False}, limit=asked["limit"], eval_batch_size=1,
    work_dir=asked["work"], no_timestamp=True))
"""


def plain_lm_eval(checkpoint: Path, suite: Suite, hub: Path, limit: int, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Samples of plain `lm_eval`, by task of the suite."""
    settings = {task.name: Loglikelihood.of(task) for task in suite.tasks_on(LOGLIKELIHOOD)}
    stock = {name: Path(own.lm_eval or own.lm_eval_file).stem for name, own in settings.items()}
    stock |= {name: RENAMED[task] for name, task in stock.items() if task in RENAMED}
    own = load_suite("smoke").path.parent / "lm_eval"
    subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32",
            "--device", "cpu", "--batch_size", "1", "--tasks", ",".join(stock.values()), "--limit", str(limit),
            "--include_path", str(own), "--log_samples", "--output_path", str(work),
        ],
        cwd=hub, env=offline(), check=True, stdout=subprocess.DEVNULL, stderr=(work / "log").open("w"),
    )  # fmt: skip
    found = {}
    for name, task in stock.items():
        (path,) = work.rglob(f"samples_{task}_*.jsonl")
        found[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def plain_evalscope(checkpoint: Path, task: TaskSpec, folder: Path, limit: int, work: Path) -> list[dict[str, Any]]:
    """Reviews of plain evalscope for one task, in its order."""
    settings = Generation.of(task)
    args: dict[str, Any] = {"local_path": str(folder), "few_shot_num": settings.num_fewshot}
    if settings.subset:
        args["subset_list"] = [settings.subset]
    asked = {
        "checkpoint": str(checkpoint), "benchmark": settings.evalscope, "dataset_args": args, "limit": limit,
        "max_tokens": settings.max_new_tokens, "work": str(work),
    }  # fmt: skip
    with (work / "log").open("w") as log:
        subprocess.run(
            [sys.executable, "-c", EVALSCOPE, json.dumps(asked)], env=offline(), check=True, stdout=log, stderr=log
        )
    (path,) = (work / "reviews").rglob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: int(row["index"]))


def offline() -> dict[str, str]:
    """The environment of a stock tool: no hub, one thread (the checkpoints are tiny)."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet}


def compare_loglikelihood(task: TaskSpec, ours: list[ItemRecord], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of items that agree, and the largest difference in nats."""
    same, largest, missing = 0, 0.0, len(plain) - len(ours)
    for record, sample in zip(ours, sorted(plain, key=lambda sample: int(sample["doc_id"])), strict=False):
        name = item_name(Loglikelihood.of(task).item, sample["doc"], task.name)
        if record.item.partition(" #")[0] != name:
            missing += 1
            continue
        theirs = [float(response[0][0]) for response in sample["resps"]]
        differences = [abs(a - b) for a, b in zip(record.choice_loglikelihoods_nats, theirs, strict=True)]
        largest = max(largest, *differences)
        same += max(differences) <= NATS and math.isclose(record.score, float(sample[record.headline.metric]))
    return {"items": len(plain), "equal": same, "missing": missing, "largest_difference_nats": largest}


def compare_generation(ours: list[ItemRecord], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of items whose prompt, reply, extracted answer and score agree."""
    counts = {"items": len(plain), "prompt": 0, "reply": 0, "answer": 0, "score": 0, "equal": 0}
    for record, review in zip(ours, plain, strict=True):
        score = review["sample_score"]["score"]
        same = {
            "prompt": review["messages"][0]["content"] == record.prompt,
            "reply": score["prediction"] == record.text,
            "answer": str(score["extracted_prediction"] or "").strip() == record.headline.answer,
            "score": float(score["value"][record.headline.metric]) == record.score,
        }
        for name, equal in same.items():
            counts[name] += equal
        counts["equal"] += all(same.values())
    return counts


def main() -> None:
    """Compare, print, write, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parity_smoke.json"))
    asked = parser.parse_args()
    asked.checkpoints = asked.checkpoints or [Path("../shared/models") / n for n in ("tinystories-656k", "stories260K")]
    if not asked.data.is_dir():
        print(f"parity_smoke: skipped (no mirror at {asked.data})")
        return
    suite, hub = load_suite("smoke"), asked.data.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        table = {
            checkpoint.name: compare_checkpoint(checkpoint.resolve(), suite, hub, asked.limit, Path(scratch))
            for checkpoint in asked.checkpoints
        }
    conclude(table, asked.limit, asked.out)


def compare_checkpoint(checkpoint: Path, suite: Suite, hub: Path, limit: int, scratch: Path) -> dict[str, Any]:
    """Task -> rung -> counts, each task printed as it is done."""
    run = evaluate(
        str(checkpoint), suite=suite.path, data=hub, limit=limit, out=scratch / "ours", dtype="float32", device="cpu"
    )
    records = list(run.records())
    work = scratch / f"lm-eval-{checkpoint.name}"
    work.mkdir()
    samples = plain_lm_eval(checkpoint, suite, hub, limit, work)
    table = {}
    for task in suite.tasks:
        row = {}
        ours = {rung: [r for r in records if r.task == task.name and r.rung == rung] for rung in task.rungs}
        if LOGLIKELIHOOD in task.rungs:
            row[LOGLIKELIHOOD] = compare_loglikelihood(task, ours[LOGLIKELIHOOD], samples[task.name])
        if GENERATION in task.rungs:
            work = scratch / f"evalscope-{checkpoint.name}-{task.name}"
            work.mkdir()
            reviews = plain_evalscope(checkpoint, task, folder_of(hub, Generation.of(task).dataset), limit, work)
            row[GENERATION] = compare_generation(ours[GENERATION], reviews)
        table[task.name] = row
        print(checkpoint.name, task.name, json.dumps(row), flush=True)
    return table


def conclude(table: dict[str, Any], limit: int, out: Path) -> None:
    """Write the table, say whether all is equal, and exit."""
    rows = [row[rung] for tasks in table.values() for row in tasks.values() for rung in row]
    equal = all(row["equal"] == row["items"] for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {"limit": limit, "items": sum(row["items"] for row in rows), "all_equal": equal, "checkpoints": table}
    out.write_text(json.dumps({**found, **provenance()}, indent=1) + "\n")
    print("all equal" if equal else "DIFFERENCES", out)
    sys.exit(0 if equal else 1)


def folder_of(hub: Path, dataset: str) -> Path:
    """Where a dataset lies in the mirror."""
    aliases = json.loads((hub / "ALIASES.json").read_text()) if (hub / "ALIASES.json").exists() else {}
    return hub / (dataset if (hub / dataset).is_dir() else aliases[dataset])


if __name__ == "__main__":
    main()
