"""Items that the engine's own rounding could turn are marked, and no others."""

from __future__ import annotations

import itertools
import random

from perplexity_lies.protocols.ranking import is_fragile


def turns(nats: list[float], choices: list[str], metric: str, by: float) -> bool:
    """The definition: some way of moving each log-likelihood by `by` up or down changes the choice ranked first."""
    norms = [len(c) if metric == "acc_norm" else 1 for c in choices]

    def first(values: list[float]) -> int:
        ranked = [value / norm for value, norm in zip(values, norms, strict=True)]
        return ranked.index(max(ranked))

    moved = (
        [n + s * by for n, s in zip(nats, signs, strict=True)] for signs in itertools.product((-1, 1), repeat=len(nats))
    )
    return any(first(values) != first(nats) for values in moved)


def test_fragile_is_what_the_definition_says() -> None:
    rng = random.Random(0)
    found = []
    for _ in range(500):
        choices = ["x" * rng.randrange(1, 6) for _ in range(4)]
        nats = [rng.uniform(-4, -3) for _ in choices]
        for metric in ("acc", "acc_norm"):
            expected = turns(nats, choices, metric, 0.05)
            assert is_fragile(nats, choices, metric, 0.05) == expected
            found.append(expected)
    assert 50 < sum(found) < 950


def test_one_choice_cannot_turn() -> None:
    assert not is_fragile([-1.0], ["a"], "acc", 10.0)
