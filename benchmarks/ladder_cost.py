"""CPU time of every rung of the ladder together against the two protocols alone, on a choice task.

    python benchmarks/ladder_cost.py CHECKPOINT ITEMS.jsonl [--limit 60]     ->   benchmarks/results/ladder_cost.json

The two protocols: ranked texts (`rank_texts`) and a free answer in chat or bare (`answer`), each in a run of its own. All rungs:
one run. What a run costs before it asks (loading, guard) is left out on both sides: only the rungs' own CPU seconds count.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from _provenance import provenance

from perplexity_lies.catalogue.items import Item, read_items
from perplexity_lies.catalogue.tasks import rung_class
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import open_engine
from perplexity_lies.engines.base import Engine, EngineOptions
from perplexity_lies.protocols.ladder import OnLadder, asked_of, generate_request, score_requests
from perplexity_lies.rungs import LADDER, RUNGS

RESULT = Path(__file__).parent / "results" / "ladder_cost.json"


def cost_s(engine: Engine, items: list[Item], rungs: list[str], settings: dict[str, Any]) -> float:
    """CPU seconds of asking `items` on `rungs`, as a run asks them: one call of each kind."""
    scores, replies = [], []
    for item in items:
        for rung in rungs:
            own: OnLadder = rung_class(rung)(metric="acc", **settings)  # type: ignore[assignment]
            asked = asked_of(engine, own, item, items)
            if RUNGS[rung].replies:
                replies.append(generate_request(engine, asked))
            else:
                scores += score_requests(engine, asked)
    started = time.process_time()
    for _ in engine.score(scores):
        pass
    for _ in engine.generate(replies):
        pass
    return time.process_time() - started


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("items", type=Path)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--answer-tokens", type=int, default=256)
    parser.add_argument("--thought-tokens", type=int, default=256)
    told = parser.parse_args()
    engine = open_engine("torch", resolve(told.checkpoint), EngineOptions(device="cpu"))
    items = read_items(told.items)[: told.limit]
    settings = {"max_new_tokens": told.answer_tokens, "thought_tokens": told.thought_tokens}
    every = [rung.name for rung in LADDER if engine.has_chat_template or not rung.name.endswith("_chat")]
    cost_s(engine, items[:2], every, settings)  # the token texts of constrained decoding are read once
    found = {name: cost_s(engine, items, [name], settings) for name in every}
    both, whole = cost_s(engine, items, ["rank_texts", "answer"], settings), cost_s(engine, items, every, settings)
    result = {
        "items": len(items),
        "settings": settings,
        "two_protocols_s": both,
        "all_rungs_s": whole,
        "ratio": whole / both,
        "alone_s": found,
        **provenance(),
    }
    RESULT.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    print(json.dumps({key: result[key] for key in ("two_protocols_s", "all_rungs_s", "ratio", "alone_s")}, indent=2))


if __name__ == "__main__":
    main()
