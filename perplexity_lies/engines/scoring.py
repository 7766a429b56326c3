"""Log-likelihoods of many continuations, each shared prefix computed once.

Each branch point of the plan (`prefix_tree.plan`) runs once; its state is forked for what continues from it and dropped when
the last of that is done. Rows of one batch start from equal lengths. Only the last stretch of an input, whose state is not used
again, is padded, on the right, where a causal model cannot see it from a scored position.

Logits are computed at scored positions only, a chunk of positions at a time. A model that changes its logits after the output
projection (a cap, a scale) gets small batches instead of chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from perplexity_lies.engines.base import Finished, ScoreRequest, ScoreResult
from perplexity_lies.engines.prefix_tree import FORWARD_TOKENS, Group, Input, Node, cheapest_runs, plan
from perplexity_lies.engines.state import bytes_of, gather, rows_of, run_on, state_of

CHUNK_TOKENS = 2048
"""Longer stretches run in chunks of this many tokens, which bounds the memory of activations."""

LOGITS_BYTES = {"cpu": 2**25, "cuda": 2**28}
"""Most bytes of fp32 logits at a time, by device type."""
LEAST_PLACES = 16
"""On a CPU a small model gets no smaller chunks than this: with fewer positions, reading the projection's weights dominates."""


class Target(NamedTuple):
    """A log-likelihood wanted off an input, which ends one token before `continuation` does."""

    key: str
    continuation: tuple[int, ...]
    truncated_tokens: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The largest batch allowed."""

    batch_tokens: int
    """Most rows times tokens."""
    rows: int
    state_bytes: int
    """Most bytes of forked states."""
    forward_tokens: int = FORWARD_TOKENS
    """Fixed cost of a forward pass, in tokens' worth of time."""


class TreeScorer:
    """Scores one list of requests."""

    def __init__(
        self, model: Any, requests: Sequence[ScoreRequest], context_tokens: int, budget: Budget, *, share: bool = True
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.budget = budget
        self.targets = _targets(requests, context_tokens)
        inputs = [
            Input(ids, min(len(ids) - len(t.continuation) for t in targets) if share else 0)
            for ids, targets in self.targets.items()
        ]
        self.root = plan(
            inputs, batch_tokens=budget.batch_tokens, most_rows=budget.rows, forward_tokens=budget.forward_tokens
        )
        self._most_places = most_places(model.config.get_text_config(), self.device)
        self._plain = projects_plainly(model)
        self._room: torch.Tensor | None = None

    def run(self, finished: Finished) -> Iterator[list[ScoreResult]]:
        """Results batch by batch. A batch is skipped when all its results are on disk; any other runs whole."""

        def done(node: Node) -> bool:
            return all(finished(t.key) for leaf in node.inputs() for t in self.targets[leaf.ids])

        def settled(leaf: Input) -> bool:
            return all(finished(t.key) for t in self.targets[leaf.ids])

        yield from self._descend(self.root, None, done, settled)

    def _descend(
        self, node: Node, state: Any, done: Callable[[Node], bool], settled: Callable[[Input], bool]
    ) -> Iterator[list[ScoreResult]]:
        """Results of everything below `node`; its `state` has one row, or is None at the root."""
        yield from self._leaves([(0, leaf) for leaf in node.leaves], node.stop, state, settled)
        for group in node.groups:
            if all(map(done, group.nodes)):
                continue
            grown = self._stem(group, node.stop, state)
            shallow = [(row, leaf) for row, child in enumerate(group.nodes) for leaf in child.leaves]
            yield from self._leaves(shallow, group.stop, grown, settled)
            for row, child in enumerate(group.nodes):
                if child.groups and not done(child):
                    below = Node(ids=child.ids, stop=child.stop, groups=child.groups)
                    yield from self._descend(
                        below, grown if len(group.nodes) == 1 else gather(grown, [row]), done, settled
                    )

    @torch.inference_mode()
    def _stem(self, group: Group, start: int, state: Any) -> Any:
        """The state at the end of the group's own stretch, one row per node."""
        tokens = torch.tensor([node.ids[start : group.stop] for node in group.nodes], device=self.device)
        return state_after(self.model, tokens, fork(state, len(group.nodes)), start)

    def _leaves(
        self, leaves: list[tuple[int, Input]], start: int, state: Any, settled: Callable[[Input], bool]
    ) -> Iterator[list[ScoreResult]]:
        """Results of `leaves`, pairs of (row of `state`, input)."""
        row_bytes = bytes_of(state) // rows_of(state) if state is not None else 0
        for batch in self._batches(leaves, start, row_bytes):
            if not all(settled(leaf) for _, leaf in batch):
                yield self._run_leaves(batch, start, state)

    def _batches(
        self, leaves: list[tuple[int, Input]], start: int, row_bytes: int
    ) -> Iterator[list[tuple[int, Input]]]:
        """Leaves in batches of similar length, longest first, cut so that the total cost within the budget is smallest."""
        ordered = sorted(leaves, key=lambda pair: (-len(pair[1].ids), pair[1].ids, pair[0]))
        reads = [max(len(t.continuation) for t in self.targets[leaf.ids]) for _, leaf in ordered]
        scored = [0, *accumulate(reads)]

        def cost(begin: int, end: int) -> float:
            """A forward pass and its tokens, padding included."""
            rows, width = end - begin, len(ordered[begin][1].ids) - start
            full = (
                rows * width > self.budget.batch_tokens
                or rows * row_bytes > self.budget.state_bytes
                or (not self._plain and scored[end] - scored[begin] > self._most_places)
            )
            return float("inf") if full and rows > 1 else self.budget.forward_tokens + rows * width

        for begin, end in cheapest_runs(len(ordered), self.budget.rows, cost):
            yield ordered[begin:end]

    def _run_leaves(self, batch: list[tuple[int, Input]], start: int, state: Any) -> list[ScoreResult]:
        """Run a batch; when it does not fit the memory, its halves."""
        with suppress(torch.OutOfMemoryError) if len(batch) > 1 else nullcontext():
            return self._forward_leaves(batch, start, state)
        # Outside the `with`: the error no longer keeps the tensors of the failed batch alive.
        half = len(batch) // 2
        return [*self._run_leaves(batch[:half], start, state), *self._run_leaves(batch[half:], start, state)]

    @torch.inference_mode()
    def _forward_leaves(self, batch: list[tuple[int, Input]], start: int, state: Any) -> list[ScoreResult]:
        """Run the inputs of a batch from token `start` on, padded on the right, and read their targets."""
        width = max(len(leaf.ids) for _, leaf in batch) - start
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        places: list[tuple[int, int]] = []
        reads: list[tuple[int, Target, int]] = []
        for at, (_, leaf) in enumerate(batch):
            rest = leaf.ids[start:]
            tokens[at, : len(rest)] = torch.tensor(rest)
            most = max(len(t.continuation) for t in self.targets[leaf.ids])
            first = len(places)
            places += [(at, len(rest) - most + i) for i in range(most)]
            reads += [(first + most - len(t.continuation), t, len(leaf.ids)) for t in self.targets[leaf.ids]]
        where = torch.tensor(places, device=self.device)
        forked = gather(state, [row for row, _ in batch]) if state is not None else None

        def forward() -> Any:
            return run_on(self.model, tokens.to(self.device), forked, start, use_cache=state is not None)

        return _read(self._logits(forward, where), reads)

    def _logits(self, forward: Callable[[], Any], where: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of a forward pass at the places `where` ([n, 2]: row, position), in chunks [<= most_places, vocabulary]."""
        if self._plain:
            with _only(self.model, where, projected=_fewest(self.model)) as hidden:
                forward()
            for chunk in hidden[0].split(self._most_places):
                yield self._project(chunk)
            return
        with _only(self.model, where):
            logits = forward().logits
        yield logits[0] if logits.shape[:2] == (1, len(where)) else logits[where[:, 0], where[:, 1]]

    def _project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of `hidden` [n, hidden_size]. On a CPU every chunk reuses one buffer, valid until the next call."""
        head = self.model.get_output_embeddings()
        if hidden.device.type != "cpu" or not _is_matrix(head):
            logits: torch.Tensor = head(hidden[None])[0]
            return logits
        if self._room is None:
            self._room = head.weight.new_empty(self._most_places, len(head.weight))
        return torch.mm(hidden, head.weight.mT, out=self._room[: len(hidden)])


def fork(state: Any, rows: int) -> Any:
    """`rows` copies of a state of one row; None (the state before any token) gives None."""
    return None if state is None else gather(state, [0] * rows)


def run_chunks(model: Any, tokens: torch.Tensor, state: Any, start: int) -> tuple[Any, torch.Tensor]:
    """Run `tokens` [rows, time] from `state` after `start` tokens, which may be written to.

    Returns the state after them and the logits of the next token, [rows, vocabulary].
    """
    last = (tokens.shape[1] - 1) // CHUNK_TOKENS * CHUNK_TOKENS
    state = state_after(model, tokens[:, :last], state, start) if last else state
    output = _run(model, tokens[:, last:], state, start + last, projected=len(tokens))
    logits = output.logits
    return state_of(output), logits[0] if logits.shape[:2] == (1, len(tokens)) else logits[:, -1]


def state_after(model: Any, tokens: torch.Tensor, state: Any, start: int) -> Any:
    """Run `tokens` [rows, time] like `run_chunks`, without logits; returns the state after them."""
    for stretch in tokens.split(CHUNK_TOKENS, dim=1):
        state = state_of(_run(model, stretch, state, start, projected=_fewest(model)))
        start += stretch.shape[1]
    return state


def _is_matrix(head: Any) -> bool:
    """Whether an output projection is a plain matrix product: no bias, no quantisation, no subclass."""
    return type(head) is torch.nn.Linear and type(head.weight) is torch.nn.Parameter and head.bias is None


def _fewest(model: Any) -> int:
    """Places to project when no logits are wanted: 0, or 1 for a head that may not take an empty tensor."""
    return 0 if _is_matrix(model.get_output_embeddings()) else 1


def _run(model: Any, tokens: torch.Tensor, state: Any, start: int, *, projected: int) -> Any:
    """One forward pass, with logits at the last position of the first `projected` rows."""
    rows = torch.arange(projected, device=tokens.device)
    ends = torch.stack([rows, torch.full_like(rows, tokens.shape[1] - 1)], dim=1)
    with _only(model, ends):
        return run_on(model, tokens, state, start, use_cache=True)


def score_tree(
    model: Any,
    requests: Sequence[ScoreRequest],
    context_tokens: int,
    budget: Budget,
    finished: Finished,
    *,
    share: bool,
) -> Iterator[list[ScoreResult]]:
    """Log-likelihoods of `requests`, cut from the left to `context_tokens` as lm-eval cuts them.

    Without `share` every input runs from its first token.
    """
    return TreeScorer(model, requests, context_tokens, budget, share=share).run(finished)


def _targets(requests: Sequence[ScoreRequest], context_tokens: int) -> dict[tuple[int, ...], list[Target]]:
    """Input ids -> the log-likelihoods to read off it. Every continuation fits the context."""
    found: dict[tuple[int, ...], dict[str, Target]] = {}
    for request in requests:
        whole = (*request.context_ids, *request.continuation_ids)
        kept = whole[-(context_tokens + 1) :]
        target = Target(request.key, request.continuation_ids, len(whole) - len(kept))
        found.setdefault(kept[:-1], {})[request.key] = target
    return {ids: list(targets.values()) for ids, targets in found.items()}


def _read(chunks: Iterable[torch.Tensor], reads: Sequence[tuple[int, Target, int]]) -> list[ScoreResult]:
    """Results off `chunks` of logits [places, vocabulary].

    `reads`: (first place, target, tokens of its input). A target takes one place per token of its continuation.
    """
    places = torch.tensor([place + i for place, target, _ in reads for i in range(len(target.continuation))])
    tokens = torch.tensor([token for _, target, _ in reads for token in target.continuation])
    values, hits = torch.empty(len(places), dtype=torch.float64), torch.empty(len(places), dtype=torch.bool)
    start = 0
    for logits in chunks:
        here = (places >= start) & (places < start + len(logits))
        values[here], hits[here] = _of_wanted(logits.float(), places[here] - start, tokens[here])
        start += len(logits)
        del logits  # before the next is made
    results, at = [], 0
    for _, target, length in reads:
        n = len(target.continuation)
        results.append(
            ScoreResult(
                key=target.key,
                loglikelihood_nats=float(values[at : at + n].sum()),
                is_greedy=bool(hits[at : at + n].all()),
                context_tokens=length + 1 - n,
                continuation_tokens=n,
                truncated_tokens=target.truncated_tokens,
            )
        )
        at += n
    return results


def _of_wanted(logits: torch.Tensor, rows: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability in nats of each `wanted` token at its row of `logits`, and whether it is greedy. Overwrites `logits`."""
    rows, wanted = rows.to(logits.device), wanted.to(logits.device)
    best = logits.amax(-1)
    of_wanted = logits[rows, wanted]
    hits = of_wanted == best[rows]
    tied = hits.nonzero()[:, 0]  # of equal logits the first is greedy, as in argmax
    hits[tied] = logits[rows[tied]].argmax(-1) == wanted[tied]
    normaliser = logits.sub_(best[:, None]).exp_().sum(-1).log() + best
    return (of_wanted - normaliser[rows]).double().cpu(), hits.cpu()


def most_places(config: Any, device: torch.device) -> int:
    """Positions per chunk of logits: within LOGITS_BYTES; on a CPU also at most hidden_size / 4."""
    places = max(1, LOGITS_BYTES.get(device.type, LOGITS_BYTES["cuda"]) // (4 * config.vocab_size))
    return min(places, max(LEAST_PLACES, config.hidden_size // 4)) if device.type == "cpu" else places


@torch.no_grad()
def projects_plainly(model: Any) -> bool:
    """Whether the model returns the output projection's tensor as it is, without a cap or a scale.

    Compares the tensors, not their values, because a cap may leave small logits unchanged.
    """
    head, given = model.get_output_embeddings(), []
    if head is None:
        return False
    handle = head.register_forward_hook(lambda module, args, output: given.append((output, output._version)))
    try:
        one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        logits = model(input_ids=one, use_cache=False).logits
    finally:
        handle.remove()
    if len(given) != 1:
        return False
    (output, version), same = given[0], given[0][0].data_ptr() == logits.data_ptr()
    return bool(same and output.dtype == logits.dtype and logits._version == version)


@contextmanager
def _only(model: Any, where: torch.Tensor, projected: int | None = None) -> Iterator[list[torch.Tensor]]:
    """Inside, the output projection sees only the places `where` ([n, 2]: row, position), or the first `projected` of them.

    The model's logits are then [1, n, vocabulary], caps and scales included. Yields a list to which the forward pass appends
    the hidden states at all places, [n, hidden_size].
    """
    head = model.get_output_embeddings()
    picked: list[torch.Tensor] = []

    def pick(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        picked.append(args[0][where[:, 0], where[:, 1]])
        return (picked[0][None, :projected], *args[1:])

    handle = head.register_forward_pre_hook(pick) if head is not None else None
    try:
        yield picked
    finally:
        if handle is not None:
            handle.remove()
