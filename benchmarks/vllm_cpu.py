"""The same items through the torch engine, the vLLM engine, and the endpoint engine on vLLM's own server, all in fp32 on CPU.

    VENV/bin/python benchmarks/vllm_cpu.py          in vLLM's own environment: docs/engines.md says how to make it

Builds a tiny random Qwen3 (head_dim 64: the smallest that vLLM's CPU attention was seen to take), scores the choices of the
miniature suite and generates greedily for its questions. Prints how many answers agree with the torch engine's and the
largest difference in nats, and writes them as JSON; exits 1 when a log-likelihood differs by more than `NATS` or a greedy
reply differs at all. Where vLLM is not installed nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _provenance import provenance

NATS = 1e-3
"""Largest difference of a continuation's log-likelihood that counts as equal."""

SERVER_S = 300
"""vLLM's server takes a minute or more to start on two cores."""

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment of this process and of the server: 1 GiB of KV cache, no second process, no network."""

STOPS: tuple[tuple[str, ...], ...] = ((), ("c",))
"""Every other reply has a stop string that random words soon hold."""

LOUD_END = 2.5
"""What the end token's row of the output projection is multiplied by."""

SHAPE = {
    "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "max_position_embeddings": 512, "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip


def build(folder: Path) -> Path:
    """A random Qwen3 with the embedded teacher's tokenizer, whose end token is loud enough that some replies end."""
    import torch
    import transformers

    from perplexity_lies.checkpoint.lookup import EMBEDDED

    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED / "teacher")
    end = tokenizer.eos_token_id
    config = transformers.Qwen3Config(
        **SHAPE, vocab_size=len(tokenizer), eos_token_id=end, bos_token_id=tokenizer.bos_token_id
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[end] *= LOUD_END
    model.generation_config = transformers.GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests_of(engine: Any, per_task: int) -> tuple[list[Any], list[Any]]:
    """Scores of every choice and greedy replies to every question of the suite's first items."""
    from perplexity_lies.catalogue.suite import load_suite
    from perplexity_lies.engines.base import GenerateRequest, ScoreRequest

    scores, replies = [], []
    for task in load_suite("miniature").tasks:
        for item in task.items.load(limit=per_task):
            context = tuple(engine.encode(item.question))
            for choice in item.choices:
                whole = tuple(engine.encode(f"{item.question} {choice}"))
                scores.append(ScoreRequest(context_ids=context, continuation_ids=whole[len(context) :] or whole[-1:]))
            prompt = engine.render_chat([{"role": "user", "content": item.question}])
            replies.append(
                GenerateRequest(
                    prompt=prompt, add_special_tokens=False, max_new_tokens=32, stop=STOPS[len(replies) % 2]
                )
            )
    return scores, replies


def greedy_of(engine: Any, replies: list[Any]) -> list[Any]:
    """Scores of the engine's own greedy replies, so that greedy flags of both kinds are compared."""
    from perplexity_lies.engines.base import ScoreRequest

    said = {result.key: result.text for batch in engine.generate(replies) for result in batch}
    contexts = [(tuple(engine.encode(request.prompt, False)), said[request.key]) for request in replies]
    return [
        ScoreRequest(context_ids=context, continuation_ids=tuple(engine.encode(text, False)))
        for context, text in contexts
        if text.strip()
    ]


def answers(
    engine: Any, scores: list[Any], replies: list[Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Results by key, and the seconds they took."""
    started = time.monotonic()
    scored = {result.key: result for batch in engine.score(scores) for result in batch}
    between = time.monotonic()
    replied = {result.key: result for batch in engine.generate(replies) for result in batch}
    return scored, replied, {"score_s": between - started, "generate_s": time.monotonic() - between}


def largest(replied: dict[str, Any], replied_too: dict[str, Any]) -> float | None:
    """Largest difference, in logits, between the narrowest choices of two engines' replies; None where one knows none."""
    pairs = [(replied[key].smallest_margin, replied_too[key].smallest_margin) for key in replied]
    return None if any(None in pair for pair in pairs) else max(abs(one - other) for one, other in pairs)


def agreement(reference: tuple[Any, ...], other: tuple[Any, ...]) -> dict[str, Any]:
    """Counts of answers that agree with the reference, and the largest difference in nats."""
    (scored, replied, _), (scored_too, replied_too, seconds) = reference, other
    differences = [abs(scored[k].loglikelihood_nats - scored_too[k].loglikelihood_nats) for k in scored]
    for key in [k for k in replied if replied[k].text != replied_too[k].text][:3]:
        print("differ:", repr(replied[key].text[:60]), repr(replied_too[key].text[:60]))
    alike = {
        name: sum(getattr(replied[k], name) == getattr(replied_too[k], name) for k in replied)
        for name in ("text", "finish_reason", "completion_tokens", "prompt_tokens")
    }
    alike["text_but_for_outer_space"] = sum(replied[k].text.strip() == replied_too[k].text.strip() for k in replied)
    return {
        "continuations": len(scored),
        "within_1e-3_nats": sum(d <= NATS for d in differences),
        "largest_difference_nats": max(differences),
        "greedy": sum(result.is_greedy for result in scored.values()),
        "greedy_flags_equal": sum(scored[k].is_greedy == scored_too[k].is_greedy for k in scored),
        "replies": len(replied),
        "replies_equal": alike,
        "reply_tokens": sum(result.completion_tokens for result in replied.values()),
        "ended_by": dict(Counter(result.finish_reason for result in replied.values())),
        "largest_difference_of_margins": largest(replied, replied_too),
        "errors": sum(bool(r.error) for r in (*scored_too.values(), *replied_too.values())),
        **{name: round(value, 3) for name, value in seconds.items()},
    }


def sampled_again(engine: Any, replies: list[Any]) -> dict[str, int]:
    """Sampled replies that are the same when asked a second time, in another order."""
    from perplexity_lies.engines.base import Sampling

    warm = [
        dataclasses.replace(r, sampling=Sampling(temperature=0.8, top_p=0.95), seed=i) for i, r in enumerate(replies)
    ]
    first, second = (
        {result.key: result.text for batch in engine.generate(asked) for result in batch}
        for asked in (warm, warm[::-1])
    )
    return {"replies": len(first), "equal": sum(first[k] == second[k] for k in first)}


def served(checkpoint: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """vLLM's own OpenAI server on a free port, answering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--host", "127.0.0.1",
                "--port", str(port), "--dtype", "float32", "--enforce-eager", "--generation-config", "vllm",
            ],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    deadline = time.monotonic() + SERVER_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}/v1"
        time.sleep(1)
    stop(server)
    raise SystemExit(f"vLLM's server did not start: {log.read_text(errors='replace')[-2000:]}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and wait for it."""
    server.terminate()
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def measure(per_task: int, scratch: Path) -> dict[str, Any]:
    """Every engine against the torch engine."""
    from perplexity_lies.checkpoint.lookup import resolve
    from perplexity_lies.engines import open_engine
    from perplexity_lies.engines.base import EngineOptions

    folder = build(scratch / "checkpoint")
    options = EngineOptions(device="cpu", dtype="float32")
    torch_engine = open_engine("torch", resolve(str(folder)), options)
    scores, replies = requests_of(torch_engine, per_task)
    scores += greedy_of(torch_engine, replies)
    reference = answers(torch_engine, scores, replies)
    table: dict[str, Any] = {"torch": {name: round(value, 3) for name, value in reference[2].items()}}

    vllm_engine = open_engine("vllm", resolve(str(folder)), options)
    table["vllm"] = agreement(reference, answers(vllm_engine, scores, replies))
    table["vllm"]["sampled_again"] = sampled_again(vllm_engine, replies[:16])
    print("vllm", json.dumps(table["vllm"]), flush=True)

    server, address = served(folder, scratch / "server.log")
    try:
        endpoint = open_engine("endpoint", resolve(address), options)
        table["endpoint on vllm serve"] = agreement(reference, answers(endpoint, scores, replies))
        table["endpoint on vllm serve"]["settings"] = endpoint.settings
    finally:
        stop(server)
    print("endpoint on vllm serve", json.dumps(table["endpoint on vllm serve"]), flush=True)
    return table


def main() -> None:
    """Measure, print, write, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-task", type=int, default=12, help="items of each task of the miniature suite")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vllm_cpu.json"))
    asked = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vllm_cpu: skipped (vllm is not installed; docs/engines.md says how to make its environment)")
        return
    os.environ.update(SETTINGS)
    with tempfile.TemporaryDirectory() as scratch:
        table = measure(asked.per_task, Path(scratch))
    rows = [table["vllm"], table["endpoint on vllm serve"]]
    equal = all(
        row["within_1e-3_nats"] == row["continuations"]
        and row["replies_equal"]["text_but_for_outer_space"] == row["replies"]
        for row in rows
    )
    found = provenance()
    found["versions"]["vllm"] = importlib.import_module("vllm").__version__
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"all_equal": equal, "shape": SHAPE, "engines": table, **found}, indent=1) + "\n")
    print("all equal" if equal else "DIFFERENCES", asked.out)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
