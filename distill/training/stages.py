"""What each stage trains, and on which loss.

GenDistill (arXiv 2603.26556), section 3 and appendix B. Stages 1 and 2: each mixer gets the teacher's own input to its layer
and learns the output of the teacher's attention, every layer by itself; stage 1 trains query and key projections, stage 2
the whole mixer. Stages 3: end to end, forward KL from the teacher (or cross-entropy on the data: SFT), attention modules
and embedding frozen; the batch's weights say which tokens count.
A loss is a sum over tokens that the caller divides by the weight of the whole optimiser step, so that micro-batches and
processes change nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from distill.data import Batch
from distill.recipe.settings import StageConfig
from distill.students.convert import group_of
from distill.training.losses import chunked_ce, chunked_kl

Give = Callable[[Tensor], None]
"""Takes a term of a loss, and may back-propagate it at once."""


class StageLoss(ABC):
    """What a stage minimises: a sum of terms over the tokens of a batch, divided by a weight."""

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """The weight that divides the terms: a sum over the batch's rows."""

    @abstractmethod
    def terms(self, batch: Batch, give: Give) -> None:
        """Calls `give` with each term as soon as it is computed, in nats (alignment: in its own unit)."""

    @torch.no_grad()
    def value(self, batch: Batch, rows: int = 0) -> float:
        """Loss of a batch: terms / weight. `rows`: rows per forward pass; 0 = whole batch."""
        given: list[Tensor] = []
        for part in batch.parts(rows):
            self.terms(part, given.append)
        return sum(term.item() for term in given) / self.weight(batch)


def trainable_in(stage: StageConfig) -> Callable[[str], bool]:
    """A function that says whether this stage trains the parameter of that name."""
    frozen = frozenset(stage.frozen)
    return lambda name: group_of(name) not in frozen


def head_of(model: PreTrainedModel) -> Tensor:
    """The output matrix [vocabulary, hidden_size], gathered where it is sharded."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight.full_tensor(grad_placements=[Partial()]) if isinstance(weight, DTensor) else weight


def scored_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states [n, hidden_size] at the places that predict a token of weight above zero."""
    hidden = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    return hidden[:, :-1][batch.weights[:, 1:] > 0]


def scored_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens of weight above zero [n] and their weights [n]."""
    weights = batch.weights[:, 1:]
    return batch.input_ids[:, 1:][weights > 0], weights[weights > 0]


class NextToken(StageLoss):
    """Cross-entropy on the data: a teacher's own training, and SFT."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def weight(self, batch: Batch) -> float:
        """Sum of the weights."""
        return batch.weights[:, 1:].double().sum().item()

    def terms(self, batch: Batch, give: Give) -> None:
        """One term."""
        give(chunked_ce(scored_states(self.model, batch), head_of(self.model), *scored_targets(batch)))


class Distillation(NextToken):
    """Forward KL from the teacher, mixed with cross-entropy by the stage's `ce_weight`."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, stage: StageConfig | None = None) -> None:
        super().__init__(student)
        self.teacher = teacher
        self.form: dict[str, Any] = {}
        if stage is not None:
            self.form = {"temperature": stage.temperature, "top_k": stage.top_k, "ce_weight": stage.ce_weight}

    def terms(self, batch: Batch, give: Give) -> None:
        """One term."""
        with torch.no_grad():
            hidden_t, head_t = scored_states(self.teacher, batch), head_of(self.teacher)
        hidden_s, head_s = scored_states(self.model, batch), head_of(self.model)
        targets, weights = scored_targets(batch)
        give(chunked_kl(hidden_s, head_s, hidden_t, head_t, weights, targets=targets, **self.form))


def l2norm(made: Tensor, wanted: Tensor) -> Tensor:
    """||made - wanted||_2 / sqrt(hidden_size) per token (RADLADS, MOHAWK). [n, hidden_size] twice -> [n]."""
    return (made - wanted).norm(dim=-1) * wanted.shape[-1] ** -0.5


def mse(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean square error per token. [n, hidden_size] twice -> [n]."""
    return (made - wanted).square().mean(-1)


def nmse(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean square error per token, divided by the mean square of `wanted`."""
    return mse(made, wanted) / wanted.square().mean(-1).clamp_min(torch.finfo(wanted.dtype).tiny)


ALIGNMENTS = {"l2norm": l2norm, "mse": mse, "nmse": nmse}


def real_tokens(batch: Batch) -> Tensor:
    """False at padding: [rows, length] bool. Padding is a row's last segment when nothing in it is predicted."""
    segments = find_segments(batch)
    last = segments == segments[:, -1:]
    return ~(last & ~((batch.weights > 0) & last).any(1, keepdim=True))


def find_segments(batch: Batch) -> Tensor:
    """Number of each token's document within its row: [rows, length]."""
    return (batch.position_ids == 0).cumsum(1)


@contextmanager
def overheard(teacher: PreTrainedModel, listen: Callable[[int, dict[str, Any], Tensor], None]) -> Iterator[None]:
    """Inside: each teacher pass calls `listen` with layer number, inputs and output of every attention module."""

    def hook_of(number: int) -> Callable[..., None]:
        return lambda module, args, kwargs, output: listen(number, kwargs, output[0])

    hooks = [
        layer.self_attn.register_forward_hook(hook_of(number), with_kwargs=True)
        for number, layer in enumerate(teacher.model.layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Alignment(StageLoss):
    """Distance between the outputs of mixers and attention, summed over layers; several students share a teacher pass.

    A term is one layer of one student, given during the teacher's pass: only that layer's activations are in memory.
    """

    def __init__(self, teacher: PreTrainedModel, students: Iterable[PreTrainedModel], distance: str) -> None:
        self.teacher, self.students, self.distance = teacher, tuple(students), ALIGNMENTS[distance]

    def weight(self, batch: Batch) -> float:
        """Tokens of documents, padding apart, whatever their weight."""
        return float(batch.tokens)

    def terms(self, batch: Batch, give: Give) -> None:
        """One term for each layer with a mixer, of each student."""
        segments, real = find_segments(batch), real_tokens(batch)
        grows = torch.is_grad_enabled()

        def listen(number: int, inputs: dict[str, Any], wanted: Tensor) -> None:
            for student in self.students:
                layer = student.model.layers[number]
                if hasattr(layer, "mixer"):
                    with torch.set_grad_enabled(grows):
                        made, _ = layer.mixer(
                            inputs["hidden_states"],
                            segments=segments,
                            position_embeddings=inputs["position_embeddings"],
                        )
                        give(self.distance(made[real].float(), wanted[real].float()).sum())

        with torch.no_grad(), overheard(self.teacher, listen):
            self.teacher.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)


def loss_in(stage: StageConfig, teacher: PreTrainedModel, student: nn.Module) -> StageLoss:
    """The loss of a stage; `pretrain` trains the teacher. Stages 1 and 2 also take an nn.ModuleDict of several students."""
    if stage.kind == "pretrain":
        return NextToken(teacher)
    if stage.kind in ("1", "2"):
        students = student.values() if isinstance(student, nn.ModuleDict) else [student]
        return Alignment(teacher, students, stage.alignment)
    return NextToken(student) if stage.objective == "sft" else Distillation(teacher, student, stage)


def mean_kl(teacher: PreTrainedModel, student: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """KL(teacher || student) over all tokens of weight above zero, nats per token."""
    loss, terms, weight = Distillation(teacher, student), list[Tensor](), 0.0
    with torch.no_grad():
        for batch in batches:
            loss.terms(batch, terms.append)
            weight += loss.weight(batch)
    return sum(term.item() for term in terms) / weight
