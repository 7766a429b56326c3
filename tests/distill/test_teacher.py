"""The untrained teacher: Qwen3's own class, a shared direction in its embeddings, a draw that disturbs nobody."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from distill.miniature.teacher import new_teacher
from distill.recipe.settings import TeacherConfig


@pytest.mark.parametrize("shared", [0.0, 1.0, 2.0])
def test_embeddings_share_a_direction(
    tokenizer: PreTrainedTokenizerBase, teacher_config: TeacherConfig, shared: float
) -> None:
    config = dataclasses.replace(teacher_config, hidden_size=256, embedding_std=0.1, embedding_shared=shared)
    table = new_teacher(config, tokenizer, seed=3).model.embed_tokens.weight
    alike = F.cosine_similarity(table[:100], table[100:200]).mean().item()
    assert alike == pytest.approx(shared**2 / (1 + shared**2), abs=0.1)
    assert (table - table.mean(0)).std().item() == pytest.approx(0.1, rel=0.05)


def test_one_seed_one_teacher(tokenizer: PreTrainedTokenizerBase, teacher_config: TeacherConfig) -> None:
    before = torch.get_rng_state()
    first, again, other = (new_teacher(teacher_config, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert type(first) is Qwen3ForCausalLM and first.config.model_type == "qwen3"
    assert first.lm_head.weight is first.model.embed_tokens.weight
    names = first.state_dict()
    assert all(torch.equal(names[name], again.state_dict()[name]) for name in names)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)
