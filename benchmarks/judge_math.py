"""Seconds that evalscope's GSM8K extraction and comparison take for 50 replies: a child a call, and one child for all.

python benchmarks/judge_math.py > benchmarks/results/judge-math.json
"""

from __future__ import annotations

import json
import time

import torch  # noqa: F401  the process that is forked is as large as in a run
import transformers  # noqa: F401
from _provenance import provenance
from evalscope.metrics.math import parser

from perplexity_lies.protocols.math_judging import warm_child

ITEMS = 50
REPLIES = [
    (f"First {i} + 3, then the rest. The answer is \\boxed{{{i * 7}}}.", str(i * 7 + i % 2)) for i in range(ITEMS)
]


def judge_all() -> tuple[list[tuple[str, bool]], float]:
    """Answer and verdict of each reply, and the seconds."""
    begun = time.perf_counter()
    found = []
    for reply, reference in REPLIES:
        answer = parser.extract_answer(reply)
        found.append((answer, parser.compare_answers(answer, reference).matched))
    return found, time.perf_counter() - begun


def compare_ways() -> None:
    """Print both figures as JSON."""
    parser.extract_answer("1")
    stock, before_s = judge_all()
    with warm_child(parser):
        ours, after_s = judge_all()
    figures = {"items": ITEMS, "equal": stock == ours, "before_s": round(before_s, 2), "after_s": round(after_s, 2)}
    print(json.dumps({**figures, **provenance()}, indent=2, sort_keys=True))


if __name__ == "__main__":
    compare_ways()
