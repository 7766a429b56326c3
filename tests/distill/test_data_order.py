"""The order of documents: every epoch a permutation, every share kept at any number, nothing remembered."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.order import interleaved, shuffled


@given(st.integers(1, 60), st.integers(-5, 1 << 40))
def test_every_epoch_visits_every_place_once(count: int, seed: int) -> None:
    place = shuffled(count, seed)
    epochs = [[place(epoch * count + index) for index in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    backwards = shuffled(count, seed)
    assert [backwards(index) for index in reversed(range(3 * count))][::-1] == sum(epochs, [])


def test_epochs_and_seeds_differ() -> None:
    one, other = shuffled(50, 1), shuffled(50, 2)
    first, second = [one(i) for i in range(50)], [one(i) for i in range(50, 100)]
    assert first != list(range(50)) and first != second and first != [other(i) for i in range(50)]


def test_the_order_is_the_same_for_ever() -> None:
    """Numbers written down once: a run resumed under another numpy must read on where it was."""
    place = shuffled(8, 3)
    assert [place(index) for index in range(16)] == [1, 4, 2, 0, 3, 5, 7, 6, 1, 3, 6, 0, 7, 2, 4, 5]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_shares_hold_and_no_document_is_left_out(shares: list[float]) -> None:
    place, seen = interleaved(shares), Counter[int]()
    for index in range(400):
        source, number = place(index)
        assert number == seen[source], "documents of each source come in order, none twice"
        seen[source] += 1
        for which, share in enumerate(shares):
            assert abs(seen[which] - (index + 1) * share / sum(shares)) <= len(shares)


@pytest.mark.parametrize("start", [0, 10**9, 10**15])
def test_shares_hold_anywhere(start: int) -> None:
    place = interleaved([0.29, 0.71])
    found = Counter(place(index)[0] for index in range(start, start + 1000))
    assert abs(found[0] - 290) <= 1
