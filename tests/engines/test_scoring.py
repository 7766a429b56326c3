"""Sharing changes nothing: the tree against one row at a time, for every family of state."""

from __future__ import annotations

import random
import weakref
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from perplexity_lies.engines import scoring
from perplexity_lies.engines.base import ScoreRequest, ScoreResult, nothing_finished
from perplexity_lies.engines.prefix_tree import computed_tokens
from perplexity_lies.engines.scoring import Budget, TreeScorer, projects_plainly, score_tree

from .conftest import CONTEXT_TOKENS, GROUPED, VOCABULARY, few_shot_requests, score_alone

BUDGET = Budget(batch_tokens=2048, rows=16, state_bytes=2**28)
NATS = 1e-4


def nats_of(request: ScoreRequest) -> float:
    """The bar of 1e-4 nats is for a continuation; fp32 sums of a hundred large terms are given a hundred thousandth."""
    return max(NATS, 1e-5 * len(request.continuation_ids))


def run(
    model: Any, requests: list[ScoreRequest], *, share: bool = True, budget: Budget = BUDGET
) -> dict[str, ScoreResult]:
    batches = score_tree(model, requests, CONTEXT_TOKENS, budget, nothing_finished, share=share)
    found = [result for batch in batches for result in batch]
    assert len(found) == len({result.key for result in found}) == len({request.key for request in requests})
    return {result.key: result for result in found}


def assert_as_alone(model: Any, requests: list[ScoreRequest], found: dict[str, ScoreResult]) -> None:
    for request in requests:
        nats, greedy = score_alone(model, request, CONTEXT_TOKENS)
        assert found[request.key].loglikelihood_nats == pytest.approx(nats, abs=nats_of(request), rel=2e-7)
        assert found[request.key].is_greedy == greedy


def test_shared_and_unshared_equal_one_row_at_a_time(model: Any) -> None:
    requests = few_shot_requests()
    assert_as_alone(model, requests, run(model, requests))
    assert_as_alone(model, requests, run(model, requests, share=False))


def test_a_starved_budget_still_gives_the_same(model: Any) -> None:
    requests = few_shot_requests(seed=1)[:30]
    assert_as_alone(model, requests, run(model, requests, budget=Budget(batch_tokens=1, rows=1, state_bytes=1)))


def test_long_stretches_run_in_chunks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_TOKENS", 13)
    requests = few_shot_requests(seed=2)[:30]
    assert_as_alone(model, requests, run(model, requests))


def test_the_vocabulary_is_projected_in_chunks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three places, which cut through continuations; a model that is run makes no logits beside them."""
    monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 3 * 4 * VOCABULARY + 1)
    read, beside = [], []

    def of_wanted(logits: torch.Tensor, rows: torch.Tensor, wanted: torch.Tensor) -> Any:
        read.append(len(logits))
        return whole(logits, rows, wanted)

    whole = scoring._of_wanted
    monkeypatch.setattr(scoring, "_of_wanted", of_wanted)
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: beside.append(output.numel())
    )
    try:
        scorer = TreeScorer(model, requests := few_shot_requests(seed=5)[:30], CONTEXT_TOKENS, BUDGET)
        beside.clear()  # of the look at how the model projects
        found = {result.key: result for batch in scorer.run(nothing_finished) for result in batch}
    finally:
        handle.remove()
    assert max(read) == 3 and set(beside) == {0}
    assert_as_alone(model, requests, found)


@pytest.mark.parametrize("head", ["a bias", "a class of its own"])
def test_a_projection_that_is_no_matrix_is_left_to_itself(head: str) -> None:
    class Own(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            assert hidden.numel()
            return super().forward(hidden) + 1.0 * (torch.arange(self.out_features) == 5)

    model, requests = capped(None), few_shot_requests(seed=5)[:30]
    new = (torch.nn.Linear if head == "a bias" else Own)(model.config.hidden_size, VOCABULARY, bias=head == "a bias")
    model.set_output_embeddings(new)
    assert projects_plainly(model)
    assert_as_alone(model, requests, run(model, requests))


def test_a_batch_that_does_not_fit_is_halved(random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it had made is let go before its halves are run."""
    whole, alive, sizes = TreeScorer._forward_leaves, weakref.WeakSet[Any](), []

    def tight(self: TreeScorer, batch: list[Any], start: int, state: Any) -> Any:
        assert not alive
        made = torch.zeros(1)
        alive.add(made)
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return whole(self, batch, start, state)

    monkeypatch.setattr(TreeScorer, "_forward_leaves", tight)
    model, requests = random_model("llama"), few_shot_requests(seed=7)[:30]
    assert_as_alone(model, requests, run(model, requests))
    assert max(sizes) == 2


def capped(cap: float | None) -> Any:
    """A Gemma 2 whose logits are capped after the projection, or not."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=cap, attn_implementation="eager")
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_what_a_model_does_to_its_logits_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 40 * 4 * VOCABULARY)
    model, requests = capped(0.5), few_shot_requests(seed=6)[:30]
    assert not projects_plainly(model)
    assert_as_alone(model, requests, run(model, requests))


@pytest.mark.parametrize("change", ["a new tensor", "in place", "none"])
def test_a_projection_that_is_worked_on_afterwards_is_known(change: str) -> None:
    model = capped(None)
    assert projects_plainly(model)
    whole = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        if change == "a new tensor":
            output.logits = output.logits * 1.0
        elif change == "in place":
            output.logits.mul_(1.0)
        return output

    model.forward = forward
    assert projects_plainly(model) == (change == "none")


def test_greedy_flags_are_found(random_model: Any) -> None:
    """Continuations that are greedy by construction, beside ones that miss it by their last token."""
    model = random_model("hybrid-kda")
    requests = []
    rng = random.Random(3)
    for length in (1, 2, 7):
        context = [rng.randrange(3, VOCABULARY) for _ in range(20)]
        ids = list(context)
        for _ in range(length):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        greedy = tuple(ids[len(context) :])
        missed = (*greedy[:-1], (greedy[-1] + 1) % VOCABULARY)
        requests += [ScoreRequest(context_ids=tuple(context), continuation_ids=c) for c in (greedy, missed)]
    found = run(model, requests)
    assert [found[request.key].is_greedy for request in requests] == [True, False] * 3


def test_one_token_choices_share_one_input(random_model: Any) -> None:
    context = tuple(range(3, 40))
    requests = [ScoreRequest(context_ids=context, continuation_ids=(token,)) for token in range(4, 8)]
    scorer = TreeScorer(random_model("llama"), requests, CONTEXT_TOKENS, BUDGET)
    assert computed_tokens(scorer.root) == len(context)


def test_truncation_is_counted(random_model: Any) -> None:
    request = ScoreRequest(context_ids=tuple([5] * 300), continuation_ids=(6, 7))
    (result,) = run(random_model("llama"), [request]).values()
    assert result.truncated_tokens == 302 - (CONTEXT_TOKENS + 1)
    assert result.continuation_tokens == 2
    assert result.context_tokens == CONTEXT_TOKENS - 1


def test_what_is_computed_does_not_depend_on_where_it_was_stopped(random_model: Any) -> None:
    """Bit for bit: results of a run resumed after any batch equal those of a run that was not stopped."""
    model, requests = random_model("qwen3"), few_shot_requests(seed=4)
    batches = list(score_tree(model, requests, CONTEXT_TOKENS, BUDGET, nothing_finished, share=True))
    whole = {result.key: result for batch in batches for result in batch}
    for stop in range(0, len(batches), 3):
        here = {result.key for batch in batches[:stop] for result in batch}
        torn = here - {batches[stop - 1][0].key} if stop else here
        for already in (here, torn):
            rest = score_tree(model, requests, CONTEXT_TOKENS, BUDGET, already.__contains__, share=True)
            again = {result.key: result for batch in rest for result in batch}
            assert already | set(again) == set(whole)
            assert all(again[key] == whole[key] for key in again)


@st.composite
def trees(draw: st.DrawFn) -> list[ScoreRequest]:
    """Requests over few tokens, so that they share prefixes by chance: contexts, continuations, prefixes of each other."""
    ids = st.lists(st.integers(3, 5), min_size=1, max_size=30).map(tuple)
    stems = draw(st.lists(ids, min_size=1, max_size=3))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        context = draw(st.sampled_from(stems)) + draw(st.sampled_from(stems)) + draw(ids)
        continuation = draw(ids)
        found.append(ScoreRequest(context_ids=context, continuation_ids=continuation))
        if draw(st.booleans()):
            found.append(ScoreRequest(context_ids=context, continuation_ids=continuation[:1]))
    return found


@pytest.mark.parametrize("family", ["llama", "hybrid-kda"])
@given(requests=trees())
@settings(max_examples=25, deadline=None)
def test_random_trees(random_model: Any, family: str, requests: list[ScoreRequest]) -> None:
    model = random_model(family)
    assert_as_alone(model, requests, run(model, requests))
