"""Greedy addition by KL: each round keeps the layer that brings the student's predictions nearest to the teacher's.

Follows GenDistill's greedy search, which starts at the all-mixer student after stage 2 and restores the teacher's
attention one layer at a time, in the one-swap spirit of KL-guided selection (ICLR 2026). As the MLPs are still the
teacher's, a swap is exact.
"""

from __future__ import annotations

from distill.selection.base import Candidates, ScoredSet, Selection

BY_KL = "KL to the teacher (nats per completion token)"


def select(candidates: Candidates) -> Selection:
    """Adds the layer that lowers the KL most, `keep` times; ties go to the lower layer.

    Raises ValueError unless 0 <= keep <= layers.
    """
    if not 0 <= candidates.keep <= candidates.layers:
        raise ValueError(f"cannot keep {candidates.keep} of {candidates.layers} layers")
    kept: tuple[int, ...] = ()
    kl_nats = {kept: candidates.kl_of(kept)}
    for _ in range(candidates.keep):
        grown = [tuple(sorted((*kept, layer))) for layer in range(candidates.layers) if layer not in kept]
        kl_nats.update({layers: candidates.kl_of(layers) for layers in grown})
        kept = min(grown, key=kl_nats.__getitem__)
    return Selection(kept=kept, by=BY_KL, scored=tuple(ScoredSet(layers, kl) for layers, kl in kl_nats.items()))
