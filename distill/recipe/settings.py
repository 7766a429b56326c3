"""A recipe: every budget, rate and seed that makes a student (and, in miniature, its teacher).

Defaults are GenDistill's (arXiv 2603.26556, Table 9 and appendix B). Types and ranges stand in the annotations and are
checked where a file is read (`distill.recipe.files`); rules about several fields stand in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from perplexity_lies.checked import Checked
from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.rungs import RUNGS
from suites.miniature.catalogue import TASKS
from suites.miniature.stream import PLAIN, Mixture

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Beta = Annotated[float, Ge(0), Lt(1)]

Kind = Literal["pretrain", "1", "2", "3a", "3b", "3"]
Group = Literal["qk", "mixer", "attention", "mlp", "norms", "embedding"]
KINDS: tuple[Kind, ...] = ("pretrain", "1", "2", "3a", "3b", "3")
"""Kinds of stage in their order: the teacher's own training, then distillation; "3" is 3a and 3b combined."""
GROUPS: tuple[Group, ...] = ("qk", "mixer", "attention", "mlp", "norms", "embedding")
"""Groups of parameters: a mixer's query and key projections, the rest of the mixers, kept attention modules, MLPs, norms
of the residual stream, embedding with the tied head."""
FROZEN: dict[Kind, tuple[Group, ...]] = {
    "pretrain": (),
    "1": ("mixer", "attention", "mlp", "norms", "embedding"),
    "2": ("attention", "mlp", "norms", "embedding"),
    "3a": ("attention", "embedding"),
    "3b": ("attention", "embedding"),
    "3": ("attention", "embedding"),
}
"""Groups frozen in each kind of stage, unless it says otherwise."""
LAYER_PLANS = {
    "beam_add5": (2, 11, 12, 17, 21),
    "beam_add7": (0, 2, 6, 11, 13, 18, 21),
    "beam_add9": (0, 1, 2, 6, 11, 17, 18, 19, 21),
    "uniform5": (0, 6, 11, 16, 21),
    "uniform7": (0, 5, 9, 13, 17, 21, 25),
    "uniform9": (0, 3, 6, 9, 12, 15, 18, 21, 24),
    "greedy5": (0, 2, 11, 13, 18),
    "greedy7": (0, 2, 5, 11, 13, 16, 18),
    "greedy9": (0, 1, 2, 5, 7, 11, 13, 16, 18),
    "greedy_kl5": (6, 16, 19, 20, 21),
    "greedy_kl7": (6, 8, 11, 16, 19, 20, 21),
    "greedy_kl9": (2, 6, 8, 11, 16, 18, 19, 20, 21),
    "beam_replace5": (0, 3, 12, 14, 23),
    "beam_replace7": (0, 3, 12, 14, 18, 23, 24),
    "beam_replace9": (0, 3, 7, 12, 14, 18, 23, 24, 25),
}
"""Layers of Qwen3-0.6B (28) that keep attention: GenDistill, Tables 8 and 11."""


def _known(word: str, known: Iterable[str], where: str) -> None:
    """Raises UsageError, with the nearest name, for a word that is not `known`."""
    if word not in known:
        raise UsageError(
            f"{where}: unknown name {word!r}{nearest(word, known)}",
            found=f"known: {', '.join(known)}",
            mend="spell it as one of these",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig(Checked):
    """A Qwen3 teacher, trained from scratch."""

    layers: Count
    hidden_size: Count
    intermediate_size: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    rope_theta: Positive
    max_positions: Count
    """Tokens of the longest context."""
    embedding_std: Positive = 0.02
    """Standard deviation of the first embeddings."""
    embedding_shared: NotNegative = 0.0
    """Size of one random vector added to every embedding, in units of `embedding_std`.

    A direction that all tokens share is what attention by position alone (to the previous token, say) can be built on, in
    an architecture without biases. Without it look-ups in the prompt form late or never, depending on the seed.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig(Checked):
    """A hybrid student. The switches below `init` are fields of `HybridConfig` under the same names."""

    mixer: str | tuple[str, ...] = "kda"
    """What replaces attention: one name for all layers, or one for each layer; names are in `students.hybrid.MIXERS`."""
    keep: Natural | tuple[Natural, ...] | str = 0
    """Layers that keep softmax attention: how many (the selector chooses), which ones, or a name in LAYER_PLANS."""
    selector: str = "greedy_kl"
    """What chooses the layers where `keep` is a number: a name in `distill.selection.SELECTORS`."""
    selection_batches: Count = 8
    """Batches on which a layer set is scored."""
    init: Literal["vo", "qkvo", "random"] = "vo"
    """Which projections start as the teacher's: "vo", "qkvo" or "random" (none)."""
    output_gate: Literal["silu", "sigmoid", "none"] = "silu"
    """Activation of the output gate: "silu", "sigmoid" or "none" (no gate)."""
    gate_identity: bool = True
    """Whether the gate starts open: SiLU at exactly 1, sigmoid (which never reaches 1) at 0.982."""
    output_norm: bool = False
    """RMS norm per head between recurrence and gate."""
    short_conv: bool = True
    """Causal convolution of four tokens over queries, keys and values."""
    conv_identity: bool = True
    """Whether the convolution starts as the identity (otherwise as torch's Conv1d does)."""
    qk_l2norm: bool = True
    """Queries and keys of unit length."""
    query_scale: Positive | None = None
    """Factor on queries; None means head_dim ** -0.5."""
    chunk_size: Count = 16
    """Tokens per chunk of the fast forms; changes speed, not results."""
    sliding_window: Count = 1024
    """Tokens that sliding-window attention sees, the current one included."""
    attention_sinks: Natural = 4
    """First tokens of a document that sliding-window attention always sees."""

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            _known(self.keep, LAYER_PLANS, "student.keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig(Mixture, Checked):
    """The miniature world's `Mixture`, with its ranges."""

    chat: dict[str, NotNegative]
    plain: dict[str, NotNegative]
    plain_share: Share
    level_documents: Natural = 0

    def __post_init__(self) -> None:
        for key, weights, known, drawn in (
            ("chat", self.chat, TASKS, self.plain_share < 1),
            ("plain", self.plain, PLAIN, self.plain_share > 0),
        ):
            for name in weights:
                _known(name, known, f"mixture.{key}")
            if drawn and not sum(weights.values()) > 0:
                raise UsageError(
                    f"mixture.{key} has no weight, but plain_share {self.plain_share} draws from it",
                    found=str(weights),
                    mend=f"{key}: {{{next(iter(known))}: 1.0}}, or plain_share: {float(key == 'chat')}",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(Checked):
    """Documents: the miniature world's, a hub dataset's, or local files'."""

    source: str
    """`miniature`, a hub dataset's name, or a path or glob of .jsonl, .txt or .parquet files."""
    mixture: MixtureConfig | None = None
    """Shares of the miniature world's stream; only with `source: miniature`."""
    subset: str | None = None
    """A hub dataset's named configuration."""
    data_dir: str | None = None
    """A hub dataset's folder, where it has folders and no configurations."""
    split: str = "train"
    revision: str | None = None
    text: str | None = None
    """Column of plain text; every token is scored. One of `text` and `messages`."""
    messages: str | None = None
    """Column of a conversation (role, content); assistant turns are completions."""
    at_least: dict[str, float] = field(default_factory=dict)
    """Column -> smallest value kept, such as {score: 4}."""
    too_long: Literal["split", "cut", "drop"] = "split"
    """Documents longer than a row: "split" (the rest is a new document), "cut" at the end, or "drop"."""

    def __post_init__(self) -> None:
        if (self.source == "miniature") != (self.mixture is not None):
            raise UsageError(
                "data: source miniature, and it alone, has a mixture",
                found=f"source {self.source}, {'no' if self.mixture is None else 'a'} mixture",
                mend="source: miniature with mixture: {...}, or another source without one",
            )
        if self.source != "miniature" and (self.text is None) == (self.messages is None):
            raise UsageError(
                "data: name the column of text or of messages, one of them",
                found=f"source {self.source}, text {self.text}, messages {self.messages}",
                mend="text: COLUMN or messages: COLUMN",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig(Checked):
    """One stage of training."""

    name: str
    kind: Kind
    data: str | Annotated[dict[str, Positive], MinLen(1)]
    """Name of one of the recipe's data, or several names with their shares of the documents."""
    data_seed: int = 0
    steps: Natural = 0
    """Optimiser steps; or give `tokens`."""
    tokens: Natural = 0
    """Token positions to run over: steps = tokens // (rows * length)."""
    rows: Count
    """Rows of one optimiser step, all processes together."""
    length: Count
    """Tokens per row."""
    micro_rows: Natural = 0
    """Rows per process and forward pass; 0 = all. Changes memory, not results."""
    lr: NotNegative
    """Peak rate of AdamW."""
    muon_lr: NotNegative = 0.0
    """Peak rate of Muon on matrices; 0 leaves them to AdamW."""
    objective: Literal["kd", "sft"] = "kd"
    """Stages 3: "kd" (forward KL to the teacher) or "sft" (cross-entropy on the data)."""
    ce_weight: Share = 0.0
    """With kd: loss = (1 - ce_weight) * KL + ce_weight * cross-entropy."""
    temperature: Positive = 1.0
    top_k: Natural = 0
    """With kd: the teacher's K likeliest tokens only, renormalised; 0 = whole vocabulary."""
    alignment: Literal["l2norm", "mse", "nmse"] = "l2norm"
    """Stages 1 and 2: "l2norm", "mse" or "nmse" (mse over the target's mean square)."""
    prompt_weight: Share = 1.0
    """Weight of prompt tokens in the loss: 1 the full sequence, 0 completions only."""
    freeze: tuple[Group, ...] | None = None
    """Groups that are not trained; None = FROZEN's for the kind."""
    weight_decay: NotNegative = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's averaging of gradients and of their squares."""
    warmup: Share = 0.1
    """Share of the steps over which the rate rises."""
    decay: Share = 0.1
    """Share of the steps over which the rate falls at the end."""
    final: Share = 0.02
    """Rate at the end, as a share of the peak."""
    clip: Positive = 1.0
    """Largest global gradient norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """"fp32", or "bf16": matrix products in bf16, weights, gates and states in fp32."""
    checkpoint_activations: bool = False
    """Recomputes activations in the backward pass: less memory, a third more time."""
    save_every: Count = 100
    """Steps between two saved states; a killed run loses at most these."""
    keep_last: Count = 1
    """Saved states to keep."""
    measure_every: Natural = 0
    """Tokens between two measurements; 0 = at the end of the stage only."""

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.tokens > 0):
            raise UsageError(
                f"stage '{self.name}': give steps or tokens, one of them, above 0",
                found=f"steps {self.steps}, tokens {self.tokens}",
                mend="steps: 100",
            )
        if self.warmup + self.decay > 1:
            raise UsageError(
                f"stage '{self.name}': warmup and decay are shares of the steps, together at most 1",
                found=f"{self.warmup} + {self.decay}",
                mend="warmup: 0.1, decay: 0.1",
            )

    @property
    def frozen(self) -> tuple[Group, ...]:
        """Groups that this stage does not train."""
        return FROZEN[self.kind] if self.freeze is None else self.freeze

    @property
    def tokens_per_step(self) -> int:
        """Token positions of one optimiser step, padding included."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Checked):
    """Teacher, student, data and stages; stages run in the order given."""

    name: str
    seed: Natural = 0
    """Seed of the initial weights."""
    teacher: TeacherConfig | str
    """A teacher to train, or a checkpoint: a directory, a hub name, builtin:teacher."""
    student: StudentConfig
    data: dict[str, DataConfig]
    stages: tuple[StageConfig, ...]
    suite: str = ""
    """Suite on which the student is measured; empty measures nothing."""
    select_by: Literal["last", "generation", "loglikelihood", "kl"] = "last"
    """Which state of the stages 3 is exported: the last, or the best by a rung's score or by KL to the teacher."""
    history: str = ""
    """How the recipe came about, for readers of the cards."""

    def __post_init__(self) -> None:
        if self.select_by in RUNGS and not self.suite:
            raise UsageError(
                f"select_by {self.select_by} needs a suite to measure on",
                found="no suite",
                mend="--set suite=miniature",
            )
        for stage in self.stages:
            for source in (stage.data,) if isinstance(stage.data, str) else stage.data:
                if source not in self.data:
                    raise UsageError(
                        f"stage '{stage.name}' reads data '{source}', which the recipe does not have"
                        + nearest(source, self.data),
                        found=f"data: {', '.join(self.data)}",
                        mend=f"--set {stage.name}.data={next(iter(self.data), 'NAME')}",
                    )
        self._check_order()

    def _check_order(self) -> None:
        """Raises UsageError for stages that do not follow each other, or do not fit the teacher."""
        kinds = [stage.kind for stage in self.stages]
        names = [stage.name for stage in self.stages]
        found = "stages: " + ", ".join(f"{name} ({kind})" for name, kind in zip(names, kinds, strict=True))
        if not kinds:
            raise UsageError(
                "a recipe has at least one stage", found="stages: none", mend="stages: [{name: ..., kind: ...}]"
            )
        if kinds != sorted(kinds, key=KINDS.index):
            order = ", ".join(KINDS)
            raise UsageError(
                f"a recipe's stages must follow the order {order}", found=found, mend="put them in that order"
            )
        if ("pretrain" in kinds) != isinstance(self.teacher, TeacherConfig):
            raise UsageError(
                "a teacher from scratch needs a stage of kind pretrain, a checkpoint none",
                found=found,
                mend="teacher: {layers: ...} with such a stage, or teacher: CHECKPOINT without",
            )
        if {"3"} & set(kinds) and {"3a", "3b"} & set(kinds):
            raise UsageError("stage 3 combines 3a and 3b: have it or them", found=found, mend="--set stage3=null")
        if len(set(names)) != len(names):
            raise UsageError("stages must have different names", found=found, mend="name: ...")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
