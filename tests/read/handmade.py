"""Run directories made by hand: manifest and records as the run wing writes them. Standard library and records only."""

import dataclasses
import json
import random
from pathlib import Path

from perplexity_lies.digests import sha256_text
from perplexity_lies.record.records import ItemRecord, Reading, Status, dump_records
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD, RUNGS

READING = {field.name for field in dataclasses.fields(Reading)}


def record(task, item, rung, score, **more):
    """A record with one reading and everything that the test does not care for filled in."""
    prompt = more.pop("prompt", f"question {item}")
    read = {"status": Status.SCORED, "metric": "acc", "extractor": "handmade@1"}
    read |= {name: more.pop(name) for name in list(more) if name in READING}
    defaults = {"gold": "g", "prompt_sha256": sha256_text(prompt)}
    if rung == GENERATION:
        defaults |= {"finish_reason": "stop", "text": "a reply", "completion_tokens": 3}
    others = more.pop("readings", ())
    readings = (Reading(score=score, **read), *others)
    return ItemRecord(task=task, item=item, rung=rung, prompt=prompt, readings=readings, **{**defaults, **more})


def write_run(path: Path, records, *, name="teacher", tasks=None, **changes) -> Path:
    """A run directory at `path`; `changes` are merged over the manifest, section by section."""
    manifest = {
        "format": 2,
        "complete": True,
        "rungs": [rung for rung in RUNGS if any(found.rung == rung for found in records)],
        "checkpoint": {"name": name, "kind": "local", "digest": f"sha256:{sha256_text(name)}",
                       "weights_digest": sha256_text(name), "tokenizer_digest": "t", "config_digest": "c",
                       "model_type": "qwen3", "parameters": 819712, "dtype": "bfloat16"},
        "suite": {"name": "miniature", "digest": "sha256:5u17e", "limit": None, "title": "Miniature"},
        "settings": {"engine": "torch", "device": "cpu", "dtype": "float32", "seed": 0},
        "versions": {"perplexity-lies": "0.1.0", "torch": "2.13.0", "lm-eval": "0.4.13", "evalscope": "1.14.1"},
        "tasks": tasks if tasks is not None else [{"name": task} for task in dict.fromkeys(r.task for r in records)],
        "timings": {"wall_s": 12.5},
    }  # fmt: skip
    for key, value in changes.items():
        manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
    (path / "records").mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest))
    files: dict[tuple[str, str], list[ItemRecord]] = {}
    for found in records:
        files.setdefault((found.task, found.rung), []).append(found)
    for number, ((_, rung), found) in enumerate(files.items()):
        (path / "records" / f"{number:03}.{rung}.jsonl").write_text(dump_records(found), encoding="utf-8")
    return path


def scores_run(path: Path, scores, **more) -> Path:
    """A run from `{(task, rung): [score, ...]}`; items are numbered."""
    records = [
        record(task, f"{i:05}", rung, float(score))
        for (task, rung), column in scores.items()
        for i, score in enumerate(column)
    ]
    return write_run(path, records, **more)


# Chance of a right score: teacher and student by log-likelihood, teacher and student generating. After the pair that
# was measured at this size before the project began; made up here, and only ever shown by tests.
TASKS = {
    "fact": ("Facts", 1.0, 1.0, 1.0, 0.99),
    "choice": ("Multiple choice", 1.0, 0.99, 1.0, 0.97),
    "arith": ("Arithmetic, 4 to 6 steps", 1.0, 0.995, 0.99, 0.54),
    "recall": ("Recall from the prompt", 0.99, 0.93, 0.98, 0.26),
    "instruct": ("Instructions", 0.985, 0.92, 0.97, 0.58),
}


def _reply(rng, gold, right):
    if right:
        return {
            "text": f"{rng.randint(2, 9)} + {rng.randint(2, 9)} = ... so the answer is\nanswer : {gold}",
            "answer": gold,
        }
    kind = rng.random()
    if kind < 0.08:
        return {"text": "answer answer answer " * 12, "status": Status.TRUNCATED, "finish_reason": "length",
                "completion_tokens": 56}  # fmt: skip
    if kind < 0.14:
        return {"text": "I am not sure about that.", "status": Status.UNPARSED}
    wrong = str(int(gold) + rng.choice([-7, -1, 2, 10]))
    return {"text": f"8 + 9 = 17 ; 17 - 9 = 8 ; 8 + {rng.randint(1, 9)} = {wrong}\nanswer : {wrong}", "answer": wrong}


def _two_records(rng, task, item, right_ranked, right_generated):
    shown = random.Random(f"{task}{item}")
    gold = str(shown.randint(10, 99))
    choices = [gold, *(str(int(gold) + d) for d in (1, -2, 10))]
    shown.shuffle(choices)
    best = choices.index(gold) if right_ranked else next(i for i, c in enumerate(choices) if c != gold)
    nats = tuple(-rng.uniform(0.2, 2.0) if i == best else -rng.uniform(3, 12) for i in range(4))
    prompt = (
        f"<user> what is {shown.randint(2, 9)} + {shown.randint(2, 9)} - {shown.randint(2, 9)} + {gold} ? <assistant>"
    )
    yield record(task, item, LOGLIKELIHOOD, float(right_ranked), prompt=prompt, gold=gold, choices=tuple(choices),
                 choice_loglikelihoods_nats=nats, choice_is_greedy=tuple(i == best for i in range(4)),
                 gold_index=choices.index(gold), answer=choices[best])  # fmt: skip
    yield record(task, item, GENERATION, float(right_generated), prompt=f"{prompt}\nEnd with 'answer : N'.", gold=gold,
                 extractor="evalscope@1.14.1", **_reply(rng, gold, right_generated))  # fmt: skip


def demo_pair(folder: Path, *, items: int = 60, limit: int | None = None) -> tuple[Path, Path]:
    """Runs of a teacher and of a student that ranks nearly as well and generates much worse, over five tasks."""
    tasks = [
        {"name": name, "title": title, "rungs": {
            "loglikelihood": {"metric": "acc", "source": "lm-eval, 0-shot", "chance": 0.25},
            "generation": {"metric": "acc", "source": "evalscope, 0-shot"}}}
        for name, (title, *_) in TASKS.items()
    ]  # fmt: skip
    runs = []
    for side, name in enumerate(("builtin:teacher", "builtin:student")):
        rng = random.Random(side)
        records = [
            found
            for task, (_, *chances) in TASKS.items()
            for i in range(items)
            for found in _two_records(
                rng, task, f"{i:04}", rng.random() < chances[side], rng.random() < chances[2 + side]
            )
        ]
        runs.append(write_run(folder / name.split(":")[1], records, name=name, tasks=tasks, suite={"limit": limit}))
    return runs[0], runs[1]
