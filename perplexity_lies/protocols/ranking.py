"""Which of several given answers is ranked first, and whether the engine's rounding could have ranked another one first."""

from __future__ import annotations

from collections.abc import Sequence


def _norms(choices: Sequence[str], metric: str) -> list[int]:
    """What lm-eval divides a choice's log-likelihood by: nothing, or its characters."""
    return [max(1, len(choice)) if metric == "acc_norm" else 1 for choice in choices]


def ranked_first(loglikelihoods: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """lm-eval's argmax: of the sum, or of the sum by characters of the choice; the first of equals."""
    values = [nats / norm for nats, norm in zip(loglikelihoods, _norms(choices, metric), strict=True)]
    return values.index(max(values))


def is_fragile(loglikelihoods: Sequence[float], choices: Sequence[str], metric: str, rounding_nats: float) -> bool:
    """Whether moving each log-likelihood by no more than `rounding_nats` could rank another choice first."""
    if len(loglikelihoods) < 2:
        return False
    norms = _norms(choices, metric)
    first = ranked_first(loglikelihoods, choices, metric)
    least = (loglikelihoods[first] - rounding_nats) / norms[first]
    return any((loglikelihoods[i] + rounding_nats) / norms[i] > least for i in range(len(choices)) if i != first)
