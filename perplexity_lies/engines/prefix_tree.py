"""Plan which tokens to compute once, as a tree of shared prefixes. Pure Python over tuples of token ids.

    header + item 1 + choice A          header ─┬─ item 1 ─┬─ choice A
    header + item 1 + choice B    ->            │          └─ choice B
    header + item 2 + choice A                  └─ item 2 ─── ...

Inputs with a common beginning compute it once, up to their branch point; from the state there each continues alone. A branch
point never lies past the first scored position of an input below it, so tokens on the border of context and continuation are
computed with their own input.

Branch points of nearly equal length form a group that runs as one batch, cut to the shortest. The tokens cut off are computed
again with each child: that costs little, and no batch needs a pad token that would enter a state used later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

MIN_SHARED_TOKENS = 8
"""A shared stretch shorter than this gets no forward pass of its own."""

MIN_GAIN_TOKENS = 24
"""Tokens that a branch point must save, over all its inputs."""

PASSES_OF_A_GROUP = 2
"""Forward passes that a group costs at least: its own, and one for what continues from it."""

FORWARD_TOKENS = 32
"""Fixed cost of a forward pass in tokens' worth of time, where the caller gives none."""


@dataclass(frozen=True, slots=True)
class Input:
    """A token sequence to run, and how much of it may be shared."""

    ids: tuple[int, ...]
    shareable: int
    """Tokens before its first scored position: the furthest place for a branch point."""


@dataclass(slots=True, eq=False)
class Node:
    """A branch point: every input below continues from the state after `ids[:stop]`."""

    ids: tuple[int, ...]
    stop: int
    leaves: list[Input] = field(default_factory=list)
    """Inputs that continue alone from here."""
    groups: list[Group] = field(default_factory=list)
    """Branch points below this one; each group runs as one batch."""

    def inputs(self) -> Iterator[Input]:
        """Every input at or below this node."""
        yield from self.leaves
        for group in self.groups:
            for node in group.nodes:
                yield from node.inputs()


@dataclass(slots=True, eq=False)
class Group:
    """Branch points computed as one batch, all cut to `stop` tokens."""

    stop: int
    nodes: list[Node]


def plan(inputs: Sequence[Input], *, batch_tokens: int, most_rows: int, forward_tokens: int = FORWARD_TOKENS) -> Node:
    """The tree over `inputs`, whose root is the empty prefix. The order of `inputs` does not matter.

    `batch_tokens`: most rows times new tokens in a group. `most_rows`: most rows in a group. `forward_tokens`: fixed cost of a
    forward pass in tokens' worth of time; the higher it is, the more tokens may be computed again to make a group larger.
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
    """Tokens the model runs when the tree is executed, padding not counted."""
    own = sum(len(leaf.ids) - node.stop for leaf in node.leaves)
    below = sum((group.stop - node.stop) + computed_tokens(child) for group in node.groups for child in group.nodes)
    return own + below


def _common(a: Input, b: Input) -> int:
    """Length of the prefix that two inputs may share."""
    limit = min(a.shareable, b.shareable)
    for at in range(limit):
        if a.ids[at] != b.ids[at]:
            return at
    return limit


def _grow(node: Node, ordered: Sequence[Input], common: Sequence[int], low: int, high: int) -> None:
    """Put inputs `low:high`, which all share `node.stop` tokens, below `node`.

    A loop over a stack of ranges, because recursion would be too deep where thousands of inputs differ one by one.
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
    """Remove branch points that lead to further ones and save less than `least_gain` tokens.

    What is below a branch point runs in batches of its own; once the point is removed, in larger ones with its neighbours.
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
    """Put the children of `node` into groups, longest first, and then theirs."""
    children = sorted((child for group in node.groups for child in group.nodes), key=lambda c: (-c.stop, c.ids))
    fan_outs = [_fan_out(child) for child in children]
    below = [0, *accumulate(fan_outs)]
    reached = [0, *accumulate(child.stop * fan_out for child, fan_out in zip(children, fan_outs, strict=True))]

    def cost(begin: int, end: int) -> float:
        """Passes of the group, plus the tokens cut off each child times the sequences that continue from it."""
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
    """Cut `range(count)` into runs of at most `most`, so that the sum of `cost(begin, end)` is smallest.

    Infinite cost forbids a run; every longer run with the same end is then forbidden too.
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
    """How many sequences continue from a node."""
    return len(node.leaves) + sum(len(group.nodes) for group in node.groups)
