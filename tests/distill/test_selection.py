"""Layer selection: greedy addition, scored sets kept, and the real score on a real student."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import Qwen3ForCausalLM

from distill.data import Tokens, pack
from distill.selection import SELECTORS, Candidates, ScoredSet, Selection, find_selector
from distill.selection.greedy import select
from distill.students.convert import assembled
from distill.students.hybrid import HybridForCausalLM
from distill.training.stages import mean_kl
from perplexity_lies.errors import UsageError


def chosen_by(kl_of: Callable[[tuple[int, ...]], float], layers: int, keep: int) -> Selection:
    return select(Candidates(layers=layers, keep=keep, kl_of=kl_of))


def test_the_best_single_layer_is_the_minimum_over_all() -> None:
    kl = {(): 3.0, (0,): 2.0, (1,): 1.0, (2,): 1.5}
    chosen = chosen_by(kl.__getitem__, 3, 1)
    assert chosen.kept == (1,) and chosen.scored == tuple(ScoredSet(layers, score) for layers, score in kl.items())


def test_addition_is_greedy_and_sets_are_nested() -> None:
    worth = {0: 1.0, 1: 5.0, 2: 4.9, 3: 0.5}

    def kl_of(kept: tuple[int, ...]) -> float:
        return 20 - sum(worth[layer] for layer in kept) + (4.0 if {1, 2} <= set(kept) else 0.0)

    assert chosen_by(kl_of, 4, 2).kept == (0, 1)
    assert chosen_by(kl_of, 4, 3).kept == (0, 1, 2)
    assert chosen_by(kl_of, 4, 0).kept == ()
    assert len(chosen_by(kl_of, 4, 2).scored) == 1 + 4 + 3


@pytest.mark.parametrize("keep", [-1, 4])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="of 3 layers"):
        chosen_by(lambda kept: 0.0, 3, keep)


@torch.no_grad()
def test_a_layer_that_kda_ruins_is_put_back(
    make_hybrid: Callable[..., HybridForCausalLM], teacher: Qwen3ForCausalLM
) -> None:
    student = make_hybrid(())
    exact = {layer: layer.mixer.o_proj.weight.clone() for layer in student.model.layers}
    for layer, weight in exact.items():
        layer.mixer.o_proj.weight.copy_(weight * 0.01)
    student.model.layers[2].mixer.o_proj.weight.copy_(exact[student.model.layers[2]] * 30)
    batch = pack(
        lambda i: Tokens([2, *range(10 + i, 30 + i), 3], ((1, 22),)), 0, rows=2, length=64, prompt_weight=1.0, pad_id=0
    )
    chosen = chosen_by(lambda kept: mean_kl(teacher, assembled(teacher, student, kept), [batch]), 3, 1)
    scored = {each.layers: each.score for each in chosen.scored}
    assert chosen.kept == (2,) and scored[(2,)] < scored[()]


def test_every_selector_of_the_table_is_there_and_a_misspelt_one_gets_its_nearest() -> None:
    for name in SELECTORS:
        found = find_selector(name)(Candidates(layers=3, keep=2, kl_of=lambda layers: -float(sum(layers))))
        assert len(found.kept) == 2 and found.kept == tuple(sorted(set(found.kept))) and found.by
    with pytest.raises(UsageError, match="student.selector: unknown name 'greedy-kl', did you mean 'greedy_kl'"):
        find_selector("greedy-kl")
