"""Which of several given answers is ranked first, and whether the engine's rounding could have ranked another one first."""

from __future__ import annotations

import math
from collections.abc import Sequence

MUTUAL_INFORMATION = "acc_mutual_info"
"""lm-eval's metric that takes from each log-likelihood that of the choice without the question."""


def _norms(choices: Sequence[str], metric: str) -> list[int]:
    """What lm-eval divides a choice's log-likelihood by: nothing, its characters, or its bytes."""
    if metric == "acc_norm":
        return [len(choice) for choice in choices]
    return [len(choice.encode("utf-8", "surrogatepass")) if metric == "acc_bytes" else 1 for choice in choices]


def _per(nats: float, norm: int) -> float:
    """A choice without characters is never first, as lm-eval divides by zero."""
    return nats / norm if norm else -math.inf


def ranked_first(
    loglikelihoods: Sequence[float], choices: Sequence[str], metric: str, alone: Sequence[float] = ()
) -> int:
    """lm-eval's argmax: of the sum, by characters or bytes, or less the choice's own (`alone`); the first of equals."""
    nats = _compared(loglikelihoods, metric, alone)
    values = [_per(value, norm) for value, norm in zip(nats, _norms(choices, metric), strict=True)]
    return values.index(max(values))


def _compared(loglikelihoods: Sequence[float], metric: str, alone: Sequence[float]) -> list[float]:
    if metric != MUTUAL_INFORMATION or len(alone) != len(loglikelihoods):
        return list(loglikelihoods)
    return [nats - own for nats, own in zip(loglikelihoods, alone, strict=True)]


def is_fragile(
    loglikelihoods: Sequence[float],
    choices: Sequence[str],
    metric: str,
    rounding_nats: float,
    alone: Sequence[float] = (),
) -> bool:
    """Whether moving each log-likelihood by no more than `rounding_nats` could rank another choice first."""
    if len(loglikelihoods) < 2:
        return False
    nats, norms = _compared(loglikelihoods, metric, alone), _norms(choices, metric)
    by = rounding_nats * (2 if nats != list(loglikelihoods) else 1)
    first = ranked_first(loglikelihoods, choices, metric, alone)
    least = _per(nats[first] - by, norms[first])
    return any(_per(nats[i] + by, norms[i]) > least for i in range(len(choices)) if i != first)
