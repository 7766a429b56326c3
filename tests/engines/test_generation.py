"""Slots change nothing: greedy text equals HF `generate` one row at a time, whoever the neighbours are."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from perplexity_lies.engines import slots
from perplexity_lies.engines.base import CannotShare, GenerateRequest, Sampling, nothing_finished
from perplexity_lies.engines.decoding import Row
from perplexity_lies.engines.generation import generate_by_length, generate_in_slots
from perplexity_lies.engines.scoring import Budget
from perplexity_lies.engines.slots import check_can_slot
from perplexity_lies.engines.state import check_can_fork, state_of

from .conftest import CONTEXT_TOKENS, VOCABULARY, generate_alone

ENDS = [5, 6]


class Words:
    """A tokenizer whose text is its ids."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def prompts_of(seed: int, count: int = 16) -> list[tuple[tuple[int, ...], int]]:
    """Prompts of many lengths, half of them below one header, with budgets of many lengths."""
    rng = random.Random(seed)
    header = [rng.randrange(7, VOCABULARY) for _ in range(40)]
    own = [[rng.randrange(7, VOCABULARY) for _ in range(rng.choice([1, 5, 12, 12, 33]))] for _ in range(count)]
    return [(tuple((header if i % 2 else []) + ids), rng.choice([1, 4, 12, 40])) for i, ids in enumerate(own)]


def rows_of(asked: list[tuple[tuple[int, ...], int]], **options: Any) -> list[Row]:
    return [
        Row(
            request=GenerateRequest(prompt=str(i), add_special_tokens=False, max_new_tokens=budget, seed=i, **options),
            prompt_ids=ids,
        )
        for i, (ids, budget) in enumerate(asked)
    ]


def run(
    model: Any, rows: list[Row], width: int, decode: Any = generate_in_slots, finished: Any = nothing_finished
) -> list[str]:
    budget = Budget(batch_tokens=2048, rows=width, state_bytes=2**28)
    batches = decode(model, Words(), rows, frozenset(ENDS), CONTEXT_TOKENS, budget, finished)
    return [result.key for batch in batches for result in batch]


def test_slots_give_the_tokens_of_generate(model: Any) -> None:
    asked = prompts_of(0)
    alone = [generate_alone(model, ids, budget, ENDS) for ids, budget in asked]
    assert len({len(ids) for ids in alone}) > 2, "the rows must end at different times"
    for width in (1, 3, 16):
        rows = rows_of(asked)
        order = list(range(len(rows)))
        random.Random(width).shuffle(order)
        keys = run(model, [rows[i] for i in order], width)
        assert sorted(keys) == sorted(row.request.key for row in rows)
        assert [row.ids for row in rows] == alone, f"{width} slots"


def test_the_plain_path_gives_the_tokens_of_generate(model: Any) -> None:
    asked = prompts_of(1)
    rows = rows_of(asked)
    run(model, rows, 3, decode=generate_by_length)
    assert [row.ids for row in rows] == [generate_alone(model, ids, budget, ENDS) for ids, budget in asked]


def test_buffers_grow_and_move(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "ROOM_TOKENS", 2)
    asked = [(ids, 30) for ids, _ in prompts_of(2, count=9)]
    rows = rows_of(asked)
    run(model, rows, 3)
    assert [row.ids for row in rows] == [generate_alone(model, ids, budget, ENDS) for ids, budget in asked]


def test_longer_rows_that_enter_together_keep_their_keys(model: Any) -> None:
    """Each is longer than all that run when it enters, and the buffers move before the next step."""
    draw = random.Random(0)
    own = lambda n: tuple(draw.randrange(7, VOCABULARY) for _ in range(n))  # noqa: E731
    short, long = own(60), own(50)
    prompts = [
        own(100),
        *(own(10) for _ in range(5)),
        short + own(30),
        short + own(20),
        long + own(150),
        long + own(140),
    ]
    rows = rows_of([(ids, 6) for ids in prompts])
    run(model, rows, 3)
    assert [row.ids for row in rows] == [generate_alone(model, ids, 6, ENDS) for ids in prompts]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 120), st.booleans(), st.integers(1, 25)), min_size=1, max_size=14), st.data())
def test_any_rows_in_any_slots(random_model: Any, shapes: list[tuple[int, bool, int]], data: st.DataObject) -> None:
    """Against the plain path, on whatever lengths, shared headers, budgets, slots and room."""
    model, draw = random_model(data.draw(st.sampled_from(["qwen3", "hybrid-mixture"]))), random.Random(len(shapes))
    header = [draw.randrange(7, VOCABULARY) for _ in range(60)]
    asked = [
        (tuple(header * shared + [draw.randrange(7, VOCABULARY) for _ in range(n)]), budget)
        for n, shared, budget in shapes
    ]
    rows, plain = rows_of(asked), rows_of(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "ROOM_TOKENS", data.draw(st.integers(1, 300)))
        run(model, rows, data.draw(st.integers(1, 6)))
    run(model, plain, 1, decode=generate_by_length)
    assert [row.ids for row in rows] == [row.ids for row in plain]


def test_a_sampled_row_does_not_depend_on_its_neighbours(random_model: Any) -> None:
    model, asked = random_model("hybrid-kda"), prompts_of(3)
    sampling = Sampling(temperature=1.0, top_p=0.95, top_k=50)
    alone = []
    for row in rows_of(asked, sampling=sampling):
        run(model, [row], 1)
        alone.append(row.ids)
    together = rows_of(asked, sampling=sampling)
    run(model, together[::-1], 7)
    assert [row.ids for row in together] == alone
    assert alone != [row.ids for row in _greedy(model, asked)]


def _greedy(model: Any, asked: list[tuple[tuple[int, ...], int]]) -> list[Row]:
    rows = rows_of(asked)
    run(model, rows, 7)
    return rows


def test_one_prompt_with_many_seeds_is_many_rows(random_model: Any) -> None:
    ids = tuple(range(10, 30))
    rows = rows_of([(ids, 20)] * 5, sampling=Sampling(temperature=1.5))
    run(random_model("llama"), rows, 4)
    assert len({tuple(row.ids) for row in rows}) == 5


def test_sampling_follows_the_model(random_model: Any) -> None:
    """First tokens of many seeds against the definition: temperature, then top-k, then top-p."""
    model, ids = random_model("llama"), tuple(range(10, 30))
    rows = rows_of([(ids, 1)] * 3000, sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9))
    run(model, rows, 64)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double() / 0.7
    best = logits.topk(5)
    chances = best.values.softmax(-1)
    kept = int((chances.cumsum(-1) < 0.9).sum()) + 1
    chances = chances[:kept] / chances[:kept].sum()
    drawn = [row.ids[0] for row in rows]
    assert set(drawn) == set(best.indices[:kept].tolist())
    for token, chance in zip(best.indices[:kept].tolist(), chances.tolist(), strict=True):
        assert drawn.count(token) / 3000 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 3000) ** 0.5)


def test_finished_rows_are_not_run(random_model: Any) -> None:
    rows = rows_of(prompts_of(4))
    done = {row.request.key for row in rows[::2]}
    keys = run(random_model("qwen3"), rows, 3, finished=done.__contains__)
    assert set(keys) == {row.request.key for row in rows} - done
    assert all(not row.ids for row in rows[::2])


def test_a_row_ends_for_one_reason(random_model: Any) -> None:
    model = random_model("llama")
    asked = [(ids, 40) for ids, _ in prompts_of(5)]
    free = rows_of(asked)
    run(model, free, 3)
    stop = str(free[0].ids[2])
    stopped = rows_of(asked, stop=(stop,))
    batches = generate_in_slots(
        model, Words(), stopped, frozenset(ENDS), CONTEXT_TOKENS, Budget(2048, 3, 2**28), nothing_finished
    )
    results = {result.key: result for batch in batches for result in batch}
    assert results[stopped[0].request.key].finish_reason == "stop_string"
    for row, before in zip(stopped, free, strict=True):
        result, text = results[row.request.key], Words().decode(before.ids)
        at = text.find(stop)
        assert result.text == (text if at < 0 else text[:at])
        if at < 0:
            assert result.finish_reason == ("stop" if before.ids[-1] in ENDS else "length")
        assert result.completion_tokens == len(row.ids)


def test_a_table_of_positions_ends_a_row(random_model: Any) -> None:
    model = random_model("gpt2")
    rows = rows_of([(tuple([9] * (CONTEXT_TOKENS - 4)), 40)])
    run(model, rows, 1)
    assert len(rows[0].prompt_ids) + len(rows[0].ids) <= CONTEXT_TOKENS
    assert rows[0].finish_reason in ("length", "stop")


def test_layers_of_both_kinds_fork_but_do_not_stand_in_slots() -> None:
    """FalconH1 keeps keys and a recurrent state in one layer: scoring shares it, generation takes the plain path."""
    config = transformers.FalconH1Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=16, max_position_embeddings=CONTEXT_TOKENS, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = state_of(model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True))
    check_can_fork(state)
    with pytest.raises(CannotShare, match="LinearAttentionAndFullAttentionLayer"):
        check_can_slot(state)
    asked = prompts_of(6, count=6)
    rows = rows_of(asked)
    run(model, rows, 3, decode=generate_by_length)
    assert [row.ids for row in rows] == [generate_alone(model, ids, budget, ENDS) for ids, budget in asked]
