"""From a teacher to a student of the same shape: which tensors become which, and what recipes call a parameter.

Mixers name their projections as attention does, so the teacher's tensors are copied by name. Teachers are Qwen3, Qwen2 or
Llama models.
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from distill.recipe.settings import LAYER_PLANS, Group, StudentConfig
from distill.students.hybrid import ATTENTION, KDA, MIXERS, HybridConfig, HybridForCausalLM
from perplexity_lies.errors import UsageError, nearest

FAMILIES = ("qwen3", "qwen2", "llama")
"""`model_type` of teachers that can have a student."""
SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings", "rope_parameters",
    "attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""Fields of the configuration that a student takes from its teacher."""
PARTS: dict[str, Group] = {
    ".self_attn.": "attention",
    ".mlp.": "mlp",
    "norm.": "norms",
    "embed_tokens.": "embedding",
    "lm_head.": "embedding",
}
"""Part of a parameter's name outside mixers -> its group; the first that fits."""
COPIED = {"vo": ("v_proj", "o_proj"), "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj"), "random": ()}
"""`StudentConfig.init` -> projections that start as the teacher's."""


def group_of(name: str) -> Group:
    """The group in `recipe.settings.GROUPS` of a teacher's or student's parameter. Raises ValueError for an unknown name."""
    if ".mixer." in name:
        return "qk" if ".q_proj." in name or ".k_proj." in name else "mixer"
    for part, group in PARTS.items():
        if part in name:
            return group
    raise ValueError(f"no group has a parameter {name}")


def check_mixers(config: StudentConfig) -> None:
    """Raises UsageError, with the nearest name, for a mixer that is not in MIXERS."""
    for name in (config.mixer,) if isinstance(config.mixer, str) else config.mixer:
        if name not in MIXERS:
            raise UsageError(
                f"student.mixer: unknown name {name!r}{nearest(name, MIXERS)}",
                found=f"known: {', '.join(MIXERS)}",
                mend=f"--set student.mixer={KDA}",
            )


def mixer_names(config: StudentConfig, layers: int) -> list[str]:
    """The mixer of each layer. Raises UsageError for an unknown one, or a list of another length."""
    check_mixers(config)
    names = [config.mixer] * layers if isinstance(config.mixer, str) else list(config.mixer)
    if len(names) != layers:
        raise UsageError(
            "student.mixer has one name, or one for each layer",
            found=f"{len(names)} mixers for {layers} layers",
            mend=f"--set student.mixer={names[0] if names else KDA}",
        )
    return names


def attention_layers(config: StudentConfig, layers: int) -> tuple[int, ...] | int:
    """The layers that keep attention, ascending; where a selector is to choose them, how many.

    Raises UsageError for layers that the teacher does not have.
    """
    named = LAYER_PLANS[config.keep] if isinstance(config.keep, str) else config.keep
    if (named if isinstance(named, int) else max(named, default=-1) + 1) > layers:
        raise UsageError(
            f"student.keep={config.keep} asks for layers that the teacher lacks",
            found=f"{layers} layers, numbered from 0",
            mend=f"--set student.keep={layers // 4}",
        )
    return (named or ()) if isinstance(named, int) else tuple(sorted(set(named)))


def student_config(teacher: PreTrainedConfig, config: StudentConfig) -> HybridConfig:
    """The configuration of a student of that teacher, with a mixer in every layer.

    Raises UsageError for a teacher of another family, or with layers other than full attention.
    """
    if teacher.model_type not in FAMILIES:
        raise UsageError(
            f"a {teacher.model_type} teacher cannot have a student",
            found=f"families that can: {', '.join(FAMILIES)}",
            mend="--teacher CHECKPOINT of one of these",
        )
    others = set(getattr(teacher, "layer_types", None) or ()) - {ATTENTION}
    if others:
        raise UsageError(
            "a student's teacher has full attention in every layer",
            found=f"layers of {', '.join(sorted(others))}",
            mend="--teacher CHECKPOINT with such layers alone",
        )
    qwen2 = teacher.model_type == "qwen2"
    bias = qwen2 or teacher.attention_bias
    switches = {field.name for field in dataclasses.fields(StudentConfig)} & HybridConfig.__dataclass_fields__.keys()
    heads = teacher.num_attention_heads
    return HybridConfig(
        **{name: getattr(teacher, name) for name in SHARED},
        **{name: getattr(config, name) for name in sorted(switches)},
        num_key_value_heads=teacher.num_key_value_heads or heads,
        head_dim=getattr(teacher, "head_dim", None) or teacher.hidden_size // heads,
        layer_types=mixer_names(config, teacher.num_hidden_layers),
        qk_norm=teacher.model_type == "qwen3",
        attention_bias=bias,
        attention_output_bias=bias and not qwen2,
        mlp_bias=getattr(teacher, "mlp_bias", False),
    )


def new_student(teacher: PreTrainedModel, seed: int, config: StudentConfig) -> HybridForCausalLM:
    """A student with a mixer in every layer: MLPs, norms, embedding and the projections of `config.init` are the teacher's.

    A mixer with `starts_as_attention` starts as the teacher's attention whatever `init` says. Weights are copies; torch's
    generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = HybridForCausalLM(student_config(teacher.config, config))
    copied = COPIED[config.init]
    state, given = student.state_dict(), teacher.state_dict()
    for name, value in given.items():
        before, attention, part = name.partition(".self_attn.")
        if attention:
            layer = student.get_submodule(before)
            if not layer.mixer.starts_as_attention and part.partition(".")[0] not in copied:
                continue
            name = f"{before}.mixer.{part}"
        state[name] = value.clone()
    student.load_state_dict(state)
    return student


def assembled(teacher: PreTrainedModel, student: HybridForCausalLM, kept: tuple[int, ...]) -> HybridForCausalLM:
    """The student with the teacher's attention put back in the layers `kept`; weights are copies."""
    types = [ATTENTION if i in kept else name for i, name in enumerate(student.config.layer_types)]
    with torch.random.fork_rng(devices=[]):
        hybrid = HybridForCausalLM(HybridConfig(**{**student.config.to_dict(), "layer_types": types}))
    available = {**teacher.state_dict(), **student.state_dict()}
    hybrid.load_state_dict({name: available[name].clone() for name in hybrid.state_dict()})
    return hybrid
