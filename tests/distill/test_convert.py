"""From a teacher to a student: which tensors become which, the families, the groups, the published parameter counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from distill.recipe.settings import GROUPS, LAYER_PLANS, StudentConfig
from distill.students.convert import assembled, group_of, new_student, student_config
from distill.students.hybrid import MIXERS
from perplexity_lies.errors import UsageError

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "eos_token_id": 3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TEACHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=12, tie_word_embeddings=True),
    "qwen3-biased-untied": lambda: Qwen3Config(**SHAPE, head_dim=8, attention_bias=True, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
    "llama-head_dim-biased": lambda: LlamaConfig(**SHAPE, head_dim=12, attention_bias=True, mlp_bias=True),
}
QWEN3_06B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


def make_teacher(family: str) -> PreTrainedModel:
    """A random teacher whose biases and norms are not at their starting values."""
    model = AutoModelForCausalLM.from_config(TEACHERS[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", TEACHERS)
@torch.no_grad()
def test_a_student_that_keeps_every_layer_is_the_teacher(family: str) -> None:
    teacher, ids = make_teacher(family), torch.randint(4, 60, (2, 40))
    hybrid = assembled(teacher, new_student(teacher, 0, StudentConfig()), (0, 1, 2)).eval()
    assert hybrid.state_dict().keys() == teacher.state_dict().keys()
    torch.testing.assert_close(hybrid(ids).logits, teacher(ids).logits)


@pytest.mark.parametrize("family", TEACHERS)
@torch.no_grad()
def test_a_wide_enough_window_is_the_teacher(family: str) -> None:
    teacher, ids = make_teacher(family), torch.randint(4, 60, (2, 40))
    student = new_student(teacher, 0, StudentConfig(mixer="swa", sliding_window=40, init="random")).eval()
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=1e-4, atol=1e-4)
    narrow = new_student(teacher, 0, StudentConfig(mixer="swa", sliding_window=8, attention_sinks=2)).eval()
    assert not torch.allclose(narrow(ids).logits[:, 20:], teacher(ids).logits[:, 20:], atol=1e-2)


@pytest.mark.parametrize(("init", "copied"), [("vo", "vo"), ("qkvo", "qkvo"), ("random", "")])
@pytest.mark.parametrize("mixer", ["kda", "gdn", "gla", "mamba2"])
def test_what_is_the_teachers_and_what_is_drawn(mixer: str, init: str, copied: str) -> None:
    teacher = make_teacher("qwen2")
    student = new_student(teacher, 0, StudentConfig(mixer=mixer, init=init))
    given = teacher.state_dict()
    for name, value in student.state_dict().items():
        of_teacher = given.get(name.replace(".mixer.", ".self_attn."))
        if ".mixer." not in name:
            assert torch.equal(value, given[name]), name
        elif of_teacher is not None:
            same = torch.equal(value, of_teacher)
            assert same == (name.split(".mixer.")[1][0] in copied), name
            assert same or value.data_ptr() != of_teacher.data_ptr()


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_a_new_student_leaves_the_random_state_and_shares_no_memory(teacher: Qwen3ForCausalLM, mixer: str) -> None:
    before, config = torch.get_rng_state(), StudentConfig(mixer=mixer)
    first, second, other = (new_student(teacher, seed, config) for seed in (5, 5, 6))
    assembled(teacher, first, (1,))
    assert torch.equal(torch.get_rng_state(), before)
    of_second, of_other = second.state_dict(), other.state_dict()
    assert all(torch.equal(value, of_second[name]) for name, value in first.state_dict().items())
    assert (mixer == "swa") == all(torch.equal(value, of_other[name]) for name, value in first.state_dict().items())
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in teacher.parameters()}


def test_assembled_keeps_every_switch(teacher: Qwen3ForCausalLM) -> None:
    config = StudentConfig(
        mixer=("gdn", "swa", "gla"), output_gate="sigmoid", gate_identity=False, output_norm=True, short_conv=False,
        qk_l2norm=False, query_scale=0.5, chunk_size=8, sliding_window=7, attention_sinks=1,
    )  # fmt: skip
    student = new_student(teacher, 0, config)
    hybrid = assembled(teacher, student, (1,))
    assert hybrid.config.layer_types == ["gdn", "full_attention", "gla"]
    own, others = (dict(model.config.to_dict()) for model in (hybrid, student))
    assert {key for key in own if own[key] != others[key]} == {"layer_types"}
    for switch in ("output_gate", "short_conv", "output_norm", "query_scale", "sliding_window", "attention_sinks"):
        assert own[switch] == getattr(config, switch)
    ids = torch.randint(6, 250, (1, 9))
    assert not torch.equal(hybrid(ids).logits, student(ids).logits)


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_every_parameter_has_a_group(teacher: Qwen3ForCausalLM, mixer: str) -> None:
    hybrid = assembled(teacher, new_student(teacher, 0, StudentConfig(mixer=mixer)), (1,))
    groups = {name: group_of(name) for model in (teacher, hybrid) for name, _ in model.named_parameters()}
    assert set(groups.values()) == set(GROUPS)
    assert groups["model.layers.0.mixer.q_proj.weight"] == groups["model.layers.0.mixer.k_proj.weight"] == "qk"
    assert groups["model.layers.0.mixer.v_proj.weight"] == groups["model.layers.0.mixer.o_proj.weight"] == "mixer"
    assert groups["model.layers.1.self_attn.q_norm.weight"] == "attention"
    assert groups["model.layers.1.input_layernorm.weight"] == groups["model.norm.weight"] == "norms"
    assert group_of("lm_head.weight") == "embedding"
    with pytest.raises(ValueError, match="no group has a parameter"):
        group_of("model.vision.weight")


def test_teachers_that_cannot_be_and_mixers_that_are_not_are_refused() -> None:
    windowed: dict[str, Any] = {**SHAPE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    for config, found in ((GPT2Config(), "qwen3, qwen2, llama"), (Qwen3Config(**windowed), "sliding_attention")):
        with pytest.raises(UsageError, match=found):
            student_config(config, StudentConfig())
    teacher = Qwen3Config(**SHAPE)
    with pytest.raises(UsageError, match="did you mean 'mamba2'"):
        student_config(teacher, StudentConfig(mixer="mamba"))
    with pytest.raises(UsageError, match="2 mixers for 3 layers"):
        student_config(teacher, StudentConfig(mixer=("kda", "gla")))


def count(module: torch.nn.Module, *groups: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not groups or group_of(name) in groups)


@pytest.mark.parametrize(
    ("mixer", "per_layer", "hybrid_total"),
    [("kda", 823_056, 613_334_096), ("mamba2", 2_133_808, 640_859_888), ("swa", 0, 596_049_920)],
)
def test_parameter_counts_of_the_paper(mixer: str, per_layer: int, hybrid_total: int) -> None:
    with torch.device("meta"):
        teacher = Qwen3ForCausalLM(Qwen3Config(**QWEN3_06B))
        student = new_student(teacher, 0, StudentConfig(mixer=mixer))
        hybrid = assembled(teacher, student, LAYER_PLANS["beam_add7"])
    assert count(teacher) == 596_049_920
    assert count(student.model.layers[0].mixer) - count(teacher.model.layers[0].self_attn) == per_layer
    assert count(hybrid) == hybrid_total
    if mixer == "kda":
        assert count(hybrid, "qk", "mixer", "mlp", "norms") == 413_709_648
