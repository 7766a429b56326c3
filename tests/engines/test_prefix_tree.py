"""The plan: every input once, shared stretches never past what may be shared, cheaper than no plan."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from perplexity_lies.engines.prefix_tree import Input, Node, cheapest_runs, computed_tokens, plan

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@st.composite
def families(draw: st.DrawFn) -> list[Input]:
    """Inputs that share prefixes of all lengths, in no order."""
    stems = draw(st.lists(tokens, min_size=1, max_size=4))
    found = []
    for _ in range(draw(st.integers(1, 25))):
        stem = draw(st.sampled_from(stems))
        ids = tuple(stem[: draw(st.integers(0, len(stem)))] + draw(tokens))
        found.append(Input(ids, draw(st.integers(0, len(ids) - 1))))
    return found


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for group in node.groups:
        for child in group.nodes:
            yield from nodes(child)


@given(families())
@settings(max_examples=300, deadline=None)
def test_every_input_hangs_below_states_that_it_may_use(inputs: list[Input]) -> None:
    root = plan(inputs, batch_tokens=200, most_rows=4)
    assert sorted(root.inputs(), key=repr) == sorted(set(inputs), key=repr)
    for node in nodes(root):
        for leaf in node.inputs():
            assert node.stop <= leaf.shareable
            assert leaf.ids[: node.stop] == node.ids[: node.stop]
        for group in node.groups:
            assert len(group.nodes) <= 4
            assert {child.stop for child in group.nodes} == {group.stop}
            assert group.stop > node.stop
            assert len(group.nodes) == 1 or len(group.nodes) * (group.stop - node.stop) <= 200


@given(families(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_inputs_does_not_matter(inputs: list[Input], rng: random.Random) -> None:
    shuffled = list(inputs)
    rng.shuffle(shuffled)

    def shape(node: Node) -> object:
        below = [(group.stop, [shape(child) for child in group.nodes]) for group in node.groups]
        return (node.stop, sorted(node.leaves, key=repr), below)

    assert shape(plan(inputs, batch_tokens=500, most_rows=8)) == shape(plan(shuffled, batch_tokens=500, most_rows=8))


def test_a_header_runs_once_for_all_its_items() -> None:
    header = tuple(range(100))
    inputs = [Input((*header, 200 + i, 300 + i, 400 + i), 102) for i in range(50)]
    assert computed_tokens(plan(inputs, batch_tokens=4096, most_rows=64)) == 100 + 50 * 3


def test_choices_share_their_item_and_items_their_header() -> None:
    header = tuple(range(100))
    items = [(*header, *(1000 + 100 * i + j for j in range(30))) for i in range(10)]
    inputs = [Input((*item, 5000 + c, *range(6000, 6010)), 129) for item in items for c in range(4)]
    assert computed_tokens(plan(inputs, batch_tokens=4096, most_rows=64)) == 100 + 10 * 29 + 40 * (1 + 11)


def test_nothing_is_shared_where_nothing_may_be() -> None:
    inputs = [Input((1, 2, 3, 4, 5, 6, 7, 8, 9, i), 0) for i in range(10)]
    root = plan(inputs, batch_tokens=4096, most_rows=64)
    assert not root.groups
    assert computed_tokens(root) == 100


def test_nodes_of_nearly_one_length_run_as_one_batch_cut_to_the_shortest() -> None:
    contexts = [tuple(range(1000 * i, 1000 * i + 40 + i)) for i in range(1, 5)]
    inputs = [Input((*context, 1, 2, 3, c), len(context)) for context in contexts for c in (7, 8)]
    root = plan(inputs, batch_tokens=4096, most_rows=64)
    assert [group.stop for group in root.groups] == [41]
    assert len(root.groups[0].nodes) == 4


def test_a_branch_point_above_others_must_spare_more_than_a_forward_pass() -> None:
    def inputs(shared: int) -> list[Input]:
        items = [(*range(shared), *(1000 * i + j for j in range(30))) for i in (1, 2)]
        return [Input((*item, c, 1, 2), shared + 30) for item in items for c in (7, 8)]

    short = plan(inputs(20), batch_tokens=4096, most_rows=64, forward_tokens=32)
    assert [(group.stop, len(group.nodes)) for group in short.groups] == [(50, 2)]
    long = plan(inputs(40), batch_tokens=4096, most_rows=64, forward_tokens=32)
    assert [(group.stop, len(group.nodes)) for group in long.groups] == [(40, 1)]
    assert [(group.stop, len(group.nodes)) for group in long.groups[0].nodes[0].groups] == [(70, 2)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_runs_cost_as_little_as_the_best_of_all_ways_to_cut(lengths: list[int], most: int, each: int) -> None:
    lengths.sort(reverse=True)

    def cost(begin: int, end: int) -> float:
        padded = (end - begin) * lengths[begin]
        return float("inf") if end - begin > 1 and padded > 60 else each + padded

    def best(end: int) -> float:
        if end == 0:
            return 0
        return min(best(begin) + cost(begin, end) for begin in range(max(0, end - most), end))

    runs = cheapest_runs(len(lengths), most, cost)
    assert [begin for begin, _ in runs] == [0, *(end for _, end in runs[:-1])]
    assert runs[-1][1] == len(lengths)
    assert all(end - begin <= most for begin, end in runs)
    assert sum(cost(begin, end) for begin, end in runs) == best(len(lengths))
