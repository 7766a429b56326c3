"""Which tokens to compute once: a plan over a tree of shared prefixes.

Inputs that begin alike (a few-shot header, an item's context) are computed to their branch point once; from the state there
each goes on alone. Branch points are token positions, never past the first scored position of any input below them, so
tokens that span the border of context and continuation are computed with their own input.

Nodes of nearly equal length are put into one group and cut to the shortest: the cut-off tokens are computed again with each
child, which costs little and means that a batch never holds a pad token whose state would live on.

Pure Python over token tuples; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

MIN_SHARED_TOKENS = 8
"""A shorter shared stretch is not worth a forward pass of its own."""

MIN_GAIN_TOKENS = 24
"""Tokens that a branch point must spare over all its inputs."""

PASSES_OF_A_GROUP = 2
"""Forward passes that a group costs at least: its own, and one for what goes on from it."""

FORWARD_TOKENS = 32
"""What one forward pass costs beside its tokens, in tokens, where the caller does not say."""


@dataclass(frozen=True, slots=True)
class Input:
    """A distinct token sequence to run, and how much of it may be shared."""

    ids: tuple[int, ...]
    shareable: int
    """Tokens before its first scored position; a branch point lies at or before it."""


@dataclass(slots=True, eq=False)
class Node:
    """A branch point: the state after `ids[:stop]` serves every input below."""

    ids: tuple[int, ...]
    stop: int
    leaves: list[Input] = field(default_factory=list)
    """Inputs that go on alone from here."""
    groups: list[Group] = field(default_factory=list)
    """Further branch points, in groups that run as one batch."""

    def inputs(self) -> Iterator[Input]:
        """Every input at or below this node."""
        yield from self.leaves
        for group in self.groups:
            for node in group.nodes:
                yield from node.inputs()


@dataclass(slots=True, eq=False)
class Group:
    """Nodes whose states are computed as one batch, all cut to `stop` tokens."""

    stop: int
    nodes: list[Node]


def plan(inputs: Sequence[Input], *, batch_tokens: int, most_rows: int, forward_tokens: int = FORWARD_TOKENS) -> Node:
    """The tree over `inputs`, rooted at the empty prefix. The same inputs in any order give the same tree.

    `batch_tokens` bounds rows times new tokens of a group, `most_rows` its rows; `forward_tokens` is what a forward pass
    costs beside its tokens, and so how many may be computed again for a larger group.
    """
    ordered = sorted(set(inputs), key=lambda i: (i.ids, i.shareable))
    common = [_common(a, b) for a, b in zip(ordered, ordered[1:], strict=False)]
    root = Node(ids=(), stop=0)
    if ordered:
        _grow(root, ordered, common, 0, len(ordered))
    _dissolve(root, forward_tokens)
    _group(root, batch_tokens, most_rows, forward_tokens)
    return root


def computed_tokens(node: Node) -> int:
    """Tokens that executing the tree runs through the model, without padding."""
    own = sum(len(leaf.ids) - node.stop for leaf in node.leaves)
    below = sum((group.stop - node.stop) + computed_tokens(child) for group in node.groups for child in group.nodes)
    return own + below


def _common(a: Input, b: Input) -> int:
    """Tokens that two inputs may share."""
    limit = min(a.shareable, b.shareable)
    for at in range(limit):
        if a.ids[at] != b.ids[at]:
            return at
    return limit


def _grow(node: Node, ordered: Sequence[Input], common: Sequence[int], low: int, high: int) -> None:
    """Hang inputs `low:high`, all of which share `node.stop` tokens, below `node`.

    Iterative over a stack of stretches: thousands of inputs may differ one by one.
    """
    pending = [(low, high)]
    while pending:
        start, end = pending.pop()
        if end - start == 1:
            node.leaves.append(ordered[start])
            continue
        shared = min(common[start : end - 1])
        spared = (end - start - 1) * (shared - node.stop)
        if shared - node.stop >= MIN_SHARED_TOKENS and spared >= MIN_GAIN_TOKENS:
            child = Node(ids=ordered[start].ids, stop=shared)
            _grow(child, ordered, common, start, end)
            node.groups.append(Group(stop=shared, nodes=[child]))
            continue
        cuts = [start, *(at + 1 for at in range(start, end - 1) if common[at] == shared), end]
        pending += reversed([(a, b) for a, b in zip(cuts, cuts[1:], strict=False)])


def _dissolve(node: Node, least_gain: int) -> None:
    """Take out branch points that lead to further ones and spare less than `least_gain` tokens.

    What hangs below such a point runs in batches of its own; without it, in batches with everything else.
    """
    kept: list[Group] = []
    pending = node.groups[::-1]
    while pending:
        group = pending.pop()
        (child,) = group.nodes
        if child.groups and (_fan_out(child) - 1) * (child.stop - node.stop) < least_gain:
            node.leaves += child.leaves
            pending += child.groups[::-1]
        else:
            kept.append(group)
            _dissolve(child, least_gain)
    node.groups = kept


def _group(node: Node, batch_tokens: int, most_rows: int, forward_tokens: int) -> None:
    """Put the children of `node` into groups, longest first, and do the same below them."""
    children = sorted((child for group in node.groups for child in group.nodes), key=lambda c: (-c.stop, c.ids))
    fan_outs = [_fan_out(child) for child in children]
    below = [0, *accumulate(fan_outs)]
    reached = [0, *accumulate(child.stop * fan_out for child, fan_out in zip(children, fan_outs, strict=True))]

    def cost(begin: int, end: int) -> float:
        """Its passes, and the tokens cut off each child, once for everything that goes on from it."""
        stop = children[end - 1].stop
        if end - begin > 1 and (end - begin) * (stop - node.stop) > batch_tokens:
            return float("inf")
        return PASSES_OF_A_GROUP * forward_tokens + reached[end] - reached[begin] - stop * (below[end] - below[begin])

    node.groups = [
        Group(stop=children[end - 1].stop, nodes=children[begin:end])
        for begin, end in cheapest_runs(len(children), most_rows, cost)
    ]
    for group in node.groups:
        for child in group.nodes:
            child.stop = group.stop
            _group(child, batch_tokens, most_rows, forward_tokens)


def cheapest_runs(count: int, most: int, cost: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """Cut `count` things in a row into runs of at most `most`, such that `cost(begin, end)` of all runs is least.

    A run of infinite cost is not allowed, nor is any longer one with the same end.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, count + 1):
        choice = (float("inf"), end - 1)
        for begin in range(end - 1, max(-1, end - 1 - most), -1):
            here = cost(begin, end)
            if here == float("inf"):
                break
            choice = min(choice, (best[begin][0] + here, begin))
        best.append(choice)
    runs: list[tuple[int, int]] = []
    end = count
    while end:
        runs.append((best[end][1], end))
        end = best[end][1]
    return runs[::-1]


def _fan_out(node: Node) -> int:
    """How many sequences go on from a node."""
    return len(node.leaves) + sum(len(group.nodes) for group in node.groups)
