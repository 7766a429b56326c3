"""Which layers keep softmax attention: greedy addition by KL.

Follows GenDistill's greedy search, which starts at the all-KDA student after stage 2 and restores the teacher's
attention one layer at a time, in the one-swap spirit of KL-guided selection (ICLR 2026): the set that brings the
student's predictions nearest to the teacher's wins each round. As the MLPs are still the teacher's, a swap is exact.
Knows nothing of models: a layer set goes in, its KL comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen layers and every set that was scored on the way."""

    kept: tuple[int, ...]
    """Ascending."""
    kl_nats: dict[tuple[int, ...], float]
    """Layer set -> KL(teacher || student), nats per token, lower is better."""


def select_layers(kl_of: Callable[[tuple[int, ...]], float], layers: int, keep: int) -> Selection:
    """Adds the layer that lowers `kl_of` most, `keep` times; ties go to the lower layer.

    Raises ValueError unless 0 <= keep <= layers.
    """
    if not 0 <= keep <= layers:
        raise ValueError(f"cannot keep {keep} of {layers} layers")
    kept: tuple[int, ...] = ()
    scored = {kept: kl_of(kept)}
    for _ in range(keep):
        candidates = [tuple(sorted((*kept, layer))) for layer in range(layers) if layer not in kept]
        scored.update({candidate: kl_of(candidate) for candidate in candidates})
        kept = min(candidates, key=lambda candidate: scored[candidate])
    return Selection(kept, scored)
