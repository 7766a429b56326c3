"""A miniature Qwen3 teacher before its first step."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from distill.recipe.settings import TeacherConfig


def new_teacher(config: TeacherConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """An untrained teacher with tied embeddings; torch's generator is left as it was."""
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        teacher = Qwen3ForCausalLM(shape)
        table = teacher.model.embed_tokens.weight
        shared = torch.randn(config.hidden_size) * config.embedding_shared
        table.copy_((torch.randn_like(table) + shared) * config.embedding_std)
    return teacher
