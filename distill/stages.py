"""What each stage trains, and on which loss.

GenDistill (arXiv 2603.26556), section 3 and appendix B. Stage 1: query and key projections of the KDA layers, each
layer fed with the teacher's own input to that layer, L2 distance of mixer outputs. Stage 2: the same loss, every tensor
of the KDA layers. Stages 3a and 3b: end to end, forward KL from the teacher over the whole vocabulary, with attention
modules and embedding frozen; all tokens in 3a, completion tokens in 3b (the batch's weights say which).
Losses are means over the valid tokens of a batch. Knows nothing of optimisers or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3ForCausalLM
from transformers.masking_utils import find_packed_sequence_indices

from distill.data import Batch
from distill.students.convert import assembled, new_student  # noqa: F401  # moved there
from distill.students.hybrid import KDA, HybridDecoderLayer, HybridForCausalLM


def trainable_in(kind: str) -> Callable[[str], bool]:
    """Whether a parameter, by its name, is trained in a stage of this kind."""
    if kind == "pretrain":
        return lambda name: True
    if kind == "1":
        return lambda name: ".mixer.q_proj." in name or ".mixer.k_proj." in name
    if kind == "2":
        return lambda name: ".mixer." in name
    return lambda name: ".self_attn." not in name and "embed_tokens" not in name and "lm_head" not in name


def scored_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, vocabulary] where a token is predicted with weight above zero, those tokens [n], their weights [n]."""
    hidden = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    scored = batch.weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][scored])
    return logits, batch.input_ids[:, 1:][scored], batch.weights[:, 1:][scored]


def next_token_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy in nats per token."""
    logits, tokens, weights = scored_logits(model, batch)
    return (F.cross_entropy(logits, tokens, reduction="none") * weights).sum() / weights.sum()


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of KL(teacher || student) in nats per token; logits [n, vocabulary], weights [n]."""
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * weights).sum() / weights.sum()


def distillation_loss(teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> Tensor:
    """Stages 3a and 3b."""
    with torch.no_grad():
        teacher_logits, _, _ = scored_logits(teacher, batch)
    student_logits, _, weights = scored_logits(student, batch)
    return forward_kl(teacher_logits, student_logits, weights)


@dataclass
class Mixing:
    """What went into and came out of every mixer of one teacher pass; both lists of [rows, length, hidden_size]."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded_mixing(teacher: Qwen3ForCausalLM) -> Iterator[Mixing]:
    """Records the mixers of the teacher passes made inside."""
    mixing = Mixing()

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, Any]) -> None:
        mixing.inputs.append(kwargs["hidden_states"])
        mixing.outputs.append(output[0])

    hooks = [layer.self_attn.register_forward_hook(keep, with_kwargs=True) for layer in teacher.model.layers]
    try:
        yield mixing
    finally:
        for hook in hooks:
            hook.remove()


def alignment_loss(teacher: Qwen3ForCausalLM, student: HybridForCausalLM, batch: Batch) -> Tensor:
    """Stages 1 and 2: ||y_student - y_teacher||_2 / sqrt(hidden_size), mean over tokens, summed over KDA layers.

    Every token of a document counts, padding does not.
    """
    with torch.no_grad(), recorded_mixing(teacher) as mixing:
        teacher.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    segments = find_packed_sequence_indices(batch.position_ids)
    pad = teacher.config.pad_token_id
    real = batch.input_ids != pad
    total = torch.zeros(())
    for layer, given, wanted in zip(student.model.layers, mixing.inputs, mixing.outputs, strict=True):
        if isinstance(layer, HybridDecoderLayer) and layer.layer_type == KDA:
            made, _ = layer.mixer(given, segments=segments)
            total = total + (made - wanted)[real].norm(dim=-1).mean() * wanted.shape[-1] ** -0.5
    return total


def loss_in(kind: str, teacher: Any, student: Any) -> Callable[[Batch], Tensor]:
    """The loss of a stage of this kind, as a function of the batch; `pretrain` trains the teacher itself."""
    if kind == "pretrain":
        return lambda batch: next_token_loss(teacher, batch)
    if kind in ("1", "2"):
        return lambda batch: alignment_loss(teacher, student, batch)
    return lambda batch: distillation_loss(teacher, student, batch)
