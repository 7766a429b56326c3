"""The order in which documents are read: pure functions of a document's number, so that training can resume anywhere.

A corpus is permuted anew in every epoch; several corpora are interleaved evenly by share (the nested floor sequences of
Bresenham's line: after any number of documents each corpus is at most one document off its share of what the corpora
before it left).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 32
"""Shares are integers out of ONE, so that places are exact for any document number."""


def shuffled(count: int, seed: int) -> Callable[[int], int]:
    """A function from a number >= 0 to one of `count` places: every epoch of `count` numbers visits each place once."""

    @functools.lru_cache(maxsize=2)
    def places(epoch: int) -> NDArray[np.int64]:
        # The legacy generator: numpy promises that its numbers never change (NEP 19).
        return np.random.RandomState([seed % ONE, epoch]).permutation(count)

    def place(index: int) -> int:
        epoch, within = divmod(index, count)
        return int(places(epoch)[within])

    return place


def interleaved(shares: Sequence[float]) -> Callable[[int], tuple[int, int]]:
    """A function from a number >= 0 to (which corpus, which of its documents); `shares` are weights above 0."""
    left = [sum(shares[number:]) for number in range(len(shares))]
    parts = [round(share / rest * ONE) for share, rest in zip(shares, left, strict=True)]

    def place(index: int) -> tuple[int, int]:
        for corpus, part in enumerate(parts[:-1]):
            before, after = (index * part + ONE // 2) // ONE, ((index + 1) * part + ONE // 2) // ONE
            if after > before:
                return corpus, before
            index -= before
        return len(parts) - 1, index

    return place
