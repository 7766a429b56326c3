"""Layer selection: greedy addition, scored sets kept, and the real score on a real student."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import Qwen3ForCausalLM

from distill.data import Tokens, pack
from distill.selection.greedy import select_layers
from distill.students.convert import assembled
from distill.students.hybrid import HybridForCausalLM
from distill.training.stages import mean_kl


def test_the_best_single_layer_is_the_minimum_over_all() -> None:
    kl = {(): 3.0, (0,): 2.0, (1,): 1.0, (2,): 1.5}
    chosen = select_layers(kl.__getitem__, 3, 1)
    assert chosen.kept == (1,) and chosen.kl_nats == kl


def test_addition_is_greedy_and_sets_are_nested() -> None:
    worth = {0: 1.0, 1: 5.0, 2: 4.9, 3: 0.5}

    def kl_of(kept: tuple[int, ...]) -> float:
        return 20 - sum(worth[layer] for layer in kept) + (4.0 if {1, 2} <= set(kept) else 0.0)

    assert select_layers(kl_of, 4, 2).kept == (0, 1)
    assert select_layers(kl_of, 4, 3).kept == (0, 1, 2)
    assert select_layers(kl_of, 4, 0).kept == ()
    assert len(select_layers(kl_of, 4, 2).kl_nats) == 1 + 4 + 3


@pytest.mark.parametrize("keep", [-1, 4])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="of 3 layers"):
        select_layers(lambda kept: 0.0, 3, keep)


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
    chosen = select_layers(lambda kept: mean_kl(teacher, assembled(teacher, student, kept), [batch]), 3, 1)
    assert chosen.kept == (2,) and chosen.kl_nats[(2,)] < chosen.kl_nats[()]
