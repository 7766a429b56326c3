"""Four candidates for each GSM8K question: the reference answer and three near numbers.

    add_candidates({"question": "How many?", "answer": "9 + 9 = 18 #### 18"})   ->   candidates ["16", "23", "18", "9"], gold 2

Near numbers differ from the answer as slips do: by one, two, five or ten, or by a factor of two. The question's text seeds
both their choice and the order.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

CANDIDATES = 4


def near_numbers(answer: int, rng: random.Random) -> list[int]:
    """Three distinct non-negative integers other than `answer`."""
    slips = [
        answer + 1,
        answer - 1,
        answer + 2,
        answer - 2,
        answer + 10,
        answer - 10,
        answer * 2,
        answer // 2,
        answer + 5,
    ]
    distinct = sorted({slip for slip in slips if slip != answer and (slip >= 0 or answer < 0)})
    return rng.sample(distinct, CANDIDATES - 1)


def add_candidates(doc: dict[str, Any]) -> dict[str, Any]:
    """`doc` with `candidates` (four numbers as text) and `gold` (the index of the right one)."""
    answer = int(doc["answer"].split("####")[-1].strip().replace(",", ""))
    rng = random.Random(int.from_bytes(hashlib.sha256(doc["question"].encode()).digest()[:8], "big"))
    candidates = [answer, *near_numbers(answer, rng)]
    rng.shuffle(candidates)
    return {**doc, "candidates": [str(c) for c in candidates], "gold": candidates.index(answer)}


def process_docs(dataset: Any) -> Any:
    """The hook that lm-eval calls with the dataset."""
    return dataset.map(add_candidates)
