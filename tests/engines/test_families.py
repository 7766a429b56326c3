"""Families of transformers, tiny and random, through the engine from a directory, against plain forward passes without a cache.

Each is right to 1e-4 nats and to the token, whatever of its state the engine can use; or it is refused with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines.base import EngineOptions, GenerateRequest
from perplexity_lies.engines.device import cpu_threads
from perplexity_lies.engines.loading import kernels_for
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import CheckpointError

from .conftest import CONTEXT_TOKENS, LETTERS, VOCABULARY, few_shot_requests, save_tokenizer, score_alone

TEXT = "".join(LETTERS)
PROMPTS = (TEXT[:50], TEXT[5:35], TEXT[:58], TEXT[:50][::-1], TEXT[3:20])
TOKENS = 8
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT_TOKENS, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 4,
    "n_shared_experts": 1, "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4, "linear_num_heads": 2, "linear_head_dim": 16,
}  # fmt: skip
MAMBA = {
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 16, "mamba_dt_rank": 8, "mamba_d_ssm": 64, "state_size": 16, "num_heads": 4, "chunk_size": 16,
    "n_groups": 1, "use_mamba_kernels": False, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16,
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
WINDOW = {"sliding_window": 16}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT_TOKENS}
BERT = {"is_decoder": True}
TURNS = {"layer_types": ["linear_attention", "full_attention"] * 2}

SHARED, NO_SLOTS, STEPS_DIFFER, UNSHARED = "in slots", "by length", "by length, steps differ", "unshared"
"""What of a family's state the engine can use."""

Family = tuple[str, dict[str, Any]]
QUICK: dict[str, Family] = {
    "bamba": (SHARED, {**MAMBA, "attn_layer_indices": [1, 3]}),
    "nemotron_h": (STEPS_DIFFER, {**MAMBA, **EXPERTS, "hybrid_override_pattern": "M*M-"}),
    "lfm2": (SHARED, {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48}),
    "deepseek_v2": (SHARED, {**EXPERTS, **LATENT}),
    "roformer": (NO_SLOTS, BERT),
    "roberta": (NO_SLOTS, BERT),
}
"""Those with a state of their own each, and fast. Steps of Nemotron-H and Zamba2 lack the clamp of a pass (transformers 5.23)."""

SLOW: dict[str, Family] = {
    "qwen3_next": (SHARED, {**EXPERTS, **LINEAR, **TURNS}),
    "qwen3_5_text": (SHARED, {**LINEAR, **TURNS}),
    "qwen3_5_moe_text": (SHARED, {**EXPERTS, **LINEAR, **TURNS}),
    "kimi_linear": (SHARED, {**EXPERTS, **LINEAR, **LATENT, **TURNS}),
    "bailing_hybrid": (SHARED, {**EXPERTS, **LINEAR, **LATENT, **TURNS}),
    "olmo_hybrid": (SHARED, {**LINEAR, **TURNS}),
    "granitemoehybrid": (
        SHARED, {**EXPERTS, **MAMBA, "shared_intermediate_size": 16, "layer_types": ["mamba", "attention"] * 2}
    ),
    "lfm2_moe": (SHARED, {**EXPERTS, "layer_types": ["conv", "full_attention"] * 2}),
    "lfm3": (SHARED, {}),
    "mamba2": (SHARED, {**MAMBA, "head_dim": 16}),
    "falcon_h1": (NO_SLOTS, MAMBA),
    "zamba2": (
        STEPS_DIFFER,
        {**MAMBA, "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_ngroups": 1, "hybrid_layer_ids": [1, 3],
         "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1, "adapter_rank": 8},
    ),
    "zamba": (UNSHARED, {**MAMBA, "n_mamba_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "jamba": (
        UNSHARED,
        {**EXPERTS, **MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1},
    ),
    "mamba": (UNSHARED, {"state_size": 16}),
    "falcon_mamba": (UNSHARED, {"state_size": 16}),
    "minimax": (UNSHARED, {**EXPERTS, **TURNS, "block_size": 16}),
    "recurrent_gemma": (UNSHARED, {"lru_width": 32, "attention_window_size": 16}),
    "rwkv": (UNSHARED, {"context_length": CONTEXT_TOKENS}),
    "openai-gpt": (UNSHARED, GPT),
    "deepseek_v4": (UNSHARED, {**EXPERTS, **LATENT}),
    "deepseek_v3": (SHARED, {**EXPERTS, **LATENT, "head_dim": 4}),
    "longcat_flash": (SHARED, {**EXPERTS, **LATENT, "head_dim": 4}),
    "minicpm3": (SHARED, LATENT),
    "gemma2": (SHARED, {**WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": (SHARED, {**WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3n_text": (
        SHARED,
        {**WINDOW, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2},
    ),
    "gpt_oss": (SHARED, {**EXPERTS, **WINDOW}),
    "cohere2": (SHARED, WINDOW),
    "olmo3": (SHARED, WINDOW),
    "exaone4": (SHARED, {**WINDOW, "sliding_window_pattern": 4}),
    "llama4_text": (SHARED, {**EXPERTS, "attention_chunk_size": 16}),
    "afmoe": (SHARED, {**EXPERTS, **WINDOW}),
    "mimo_v2_flash": (SHARED, {**EXPERTS, **WINDOW}),
    "granite_swa": (SHARED, WINDOW),
    "modernbert-decoder": (SHARED, {"local_attention": 16}),
    "minimax_m2": (SHARED, EXPERTS),
    "jetmoe": (SHARED, EXPERTS),
    "diffllama": (SHARED, {}),
    "doge": (SHARED, {}),
    "nanochat": (SHARED, {}),
    "phi3": (SHARED, {"sliding_window": None}),
    "hrm_text": (SHARED, {}),
    "bloom": (SHARED, {"n_layer": 3, "n_head": 4}),
    "mpt": (SHARED, {"d_model": 32, "n_layers": 3, "n_heads": 4}),
    "gptj": (SHARED, {**GPT, "rotary_dim": 8}),
    "gpt_bigcode": (SHARED, GPT),
    "xglm": (SHARED, {"d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4}),
    "opt": (SHARED, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "biogpt": (SHARED, {}),
    "bert": (SHARED, BERT),
    "megatron-bert": (UNSHARED, BERT),
}  # fmt: skip
FAMILIES = QUICK | SLOW


def save(family: str, path: Path, extra: dict[str, Any]) -> None:
    """A random checkpoint of `family`; sizes that its config does not let one set are left at their default."""
    asked = {**SIZES, **extra}
    own = transformers.AutoConfig.for_model(family).__class__
    fixed = {
        name for name in asked if isinstance(getattr(own, name, None), property) and getattr(own, name).fset is None
    }
    with torch.random.fork_rng(devices=[]), kernels_for(torch.device("cpu")):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **{k: v for k, v in asked.items() if k not in fixed})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    save_tokenizer(path)


def engine_of(family: str, path: Path, extra: dict[str, Any]) -> TorchEngine:
    save(family, path, extra)
    return TorchEngine(resolve(str(path)), EngineOptions(device="cpu", slots=4))


def used(engine: TorchEngine) -> str:
    """What of the state the engine uses."""
    if engine.why_not_shared:
        return UNSHARED
    if engine.why_not_cached:
        return STEPS_DIFFER
    return NO_SLOTS if engine.why_not_slots else SHARED


@torch.no_grad()
def reply_alone(engine: TorchEngine, prompt: str) -> tuple[int, ...]:
    """Greedy, one full forward pass without a cache for every token."""
    ids = list(engine.encode(prompt, False))
    start = len(ids)
    while len(ids) - start < TOKENS and not (len(ids) > start and ids[-1] in engine.end_ids):
        ids.append(int(engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[start:])


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_scores_and_replies_are_those_of_full_passes(family: str, tmp_path: Path) -> None:
    way, extra = FAMILIES[family]
    engine = engine_of(family, tmp_path, extra)
    assert used(engine) == way, (engine.why_not_shared, engine.why_not_slots, engine.why_not_cached)
    assert engine.why_not_slots or not engine.why_not_cached, "slots run single tokens from states"
    requests = few_shot_requests(seed=3)[:16]
    found = {result.key: result for batch in engine.score(requests) for result in batch}
    asked = [GenerateRequest(prompt=prompt, add_special_tokens=False, max_new_tokens=TOKENS) for prompt in PROMPTS]
    replies = {result.key: result.token_ids for batch in engine.generate(asked) for result in batch}
    with cpu_threads(1):
        for request in requests:
            nats, greedy = score_alone(engine.model, request, engine.context_tokens)
            assert found[request.key].loglikelihood_nats == pytest.approx(nats, abs=1e-4)
            assert found[request.key].is_greedy == greedy
        assert [replies[request.key] for request in asked] == [reply_alone(engine, prompt) for prompt in PROMPTS]


def test_no_table_of_positions_is_left(tmp_path: Path) -> None:
    """GPT-J's is of sines, RoBERTa's begins after its pad token: replies end where it ends, longer prompts are refused."""
    for family, room in (("gptj", CONTEXT_TOKENS), ("roberta", CONTEXT_TOKENS - 1)):
        engine = engine_of(family, tmp_path / family, FAMILIES[family][1])
        assert engine.context_tokens == room
        asked = [
            GenerateRequest(prompt="x" * length, add_special_tokens=False, max_new_tokens=TOKENS)
            for length in (room - 3, room)
        ]
        found = {result.key: result for batch in engine.generate(asked) for result in batch}
        fits, over = (found[request.key] for request in asked)
        assert fits.error == "" and fits.completion_tokens <= 3 and fits.finish_reason in ("length", "stop")
        assert over.error == f"the prompt has {room} tokens and the checkpoint {room} positions"


def test_a_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    """BERT without `is_decoder`: padding or a longer row would change every log-likelihood."""
    with pytest.raises(CheckpointError, match="no causal language model") as caught:
        engine_of("bert", tmp_path, {"is_decoder": False})
    assert "is_decoder" in str(caught.value)


def test_the_cached_steps_of_generate_know_their_positions(tmp_path: Path) -> None:
    """Bamba counts from 0 again at every step unless it is told; HF `generate` tells it."""
    engine = engine_of("bamba", tmp_path, QUICK["bamba"][1])
    for why in ("", "not wanted here"):
        engine.why_not_slots = why
        for prompt in PROMPTS:
            ids = torch.tensor([engine.encode(prompt, False)])
            with torch.no_grad():
                whole = engine.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
                    eos_token_id=sorted(engine.end_ids),
                )  # fmt: skip
            request = GenerateRequest(prompt=prompt, add_special_tokens=False, max_new_tokens=TOKENS)
            ((result,),) = engine.generate([request])
            assert result.token_ids == tuple(whole[0, ids.shape[1] :].tolist())
