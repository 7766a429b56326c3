"""A recipe: every budget, rate and seed that makes a student (and, in miniature, its teacher).

Defaults are GenDistill's (arXiv 2603.26556, Table 9 and appendix B). Knows nothing of torch, and nothing of the YAML files
that recipes are read from (`distill.recipe.files`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perplexity_lies.errors import UsageError, nearest
from suites.miniature.stream import Mixture

KINDS = ("pretrain", "1", "2", "3a", "3b", "3")
"""What a stage may be: the teacher's own training, or a step of distillation; "3" is 3a and 3b combined."""
GROUPS = ("qk", "mixer", "attention", "mlp", "norms", "embedding")
"""Names for parameters: a mixer's query and key projections, the rest of the mixers, kept attention modules, MLPs, norms
of the residual stream, embedding with the tied head."""
FROZEN = {
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


def _one_of(value: str, allowed: Sequence[str], where: str) -> None:
    if value not in allowed:
        raise UsageError(f"{where} must be one of {', '.join(allowed)}{nearest(value, allowed)}", found=repr(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """A Qwen3 teacher, trained from scratch."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    max_positions: int
    """Tokens of the longest context."""
    embedding_std: float = 0.02
    """Standard deviation of the first embeddings."""
    embedding_shared: float = 0.0
    """Size of one random vector added to every embedding, in units of `embedding_std`.

    A direction that all tokens share is what attention by position alone (to the previous token, say) can be built on, in
    an architecture without biases. Without it look-ups in the prompt form late or never, depending on the seed.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """A hybrid student. The switches below `init` are fields of `HybridConfig` under the same names."""

    mixer: str | tuple[str, ...] = "kda"
    """What stands in the place of attention: one name for all layers, or one for each layer."""
    keep: int | tuple[int, ...] | str = 0
    """Layers that keep softmax attention: how many (chosen by KL), which ones, or a name in LAYER_PLANS."""
    selection_batches: int = 8
    """Batches on which a layer set is scored."""
    init: str = "vo"
    """Which projections start as the teacher's: "vo", "qkvo" or "random" (none)."""
    output_gate: str = "silu"
    """Activation of the output gate: "silu", "sigmoid" or "none" (no gate)."""
    gate_identity: bool = True
    """Whether the gate starts open: SiLU as exactly 1; sigmoid, which has no such point, as near to it as the bias 4 gives."""
    output_norm: bool = False
    """RMS norm per head between recurrence and gate."""
    short_conv: bool = True
    """Causal convolution of four tokens over queries, keys and values."""
    conv_identity: bool = True
    """Whether the convolution starts as the identity (otherwise as torch's Conv1d does)."""
    qk_l2norm: bool = True
    """Queries and keys of unit length."""
    query_scale: float | None = None
    """Factor on queries; None means head_dim ** -0.5."""
    chunk_size: int = 16
    """Tokens per chunk of the fast forms; changes speed, not results."""
    sliding_window: int = 1024
    """Tokens that sliding-window attention sees, its own included."""
    attention_sinks: int = 4
    """First tokens of a document that sliding-window attention always sees."""

    def __post_init__(self) -> None:
        _one_of(self.init, ("vo", "qkvo", "random"), "student.init")
        _one_of(self.output_gate, ("silu", "sigmoid", "none"), "student.output_gate")
        if isinstance(self.keep, str):
            _one_of(self.keep, tuple(LAYER_PLANS), "student.keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Documents: the miniature world's, a hub dataset's, or local files'."""

    source: str
    """`miniature`, a hub dataset's name, or a path or glob of .jsonl, .txt or .parquet files."""
    mixture: Mixture | None = None
    """What the miniature world's stream holds; only with `source: miniature`."""
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
    too_long: str = "split"
    """Documents longer than a row: "split" (the rest is a new document), "cut" at the end, or "drop"."""

    def __post_init__(self) -> None:
        _one_of(self.too_long, ("split", "cut", "drop"), "data: too_long")
        if (self.source == "miniature") != (self.mixture is not None):
            raise UsageError("data: source miniature, and it alone, has a mixture", found=f"source {self.source}")
        if self.source != "miniature" and (self.text is None) == (self.messages is None):
            raise UsageError("data: name the column of text or of messages, one of them", found=f"source {self.source}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage of training."""

    name: str
    kind: str
    """One of KINDS."""
    data: str | dict[str, float]
    """Which of the recipe's data feeds it; or several with their shares of the documents."""
    data_seed: int = 0
    steps: int = 0
    """Optimiser steps; or give `tokens`."""
    tokens: int = 0
    """Token positions to run over: steps = tokens // (rows * length)."""
    rows: int
    """Rows of one optimiser step, all processes together."""
    length: int
    """Tokens per row."""
    micro_rows: int = 0
    """Rows per process that go through the model at a time; 0 is all. Changes memory, not results."""
    lr: float
    """Peak rate of AdamW."""
    muon_lr: float = 0.0
    """Peak rate of Muon on matrices; 0 leaves them to AdamW."""
    objective: str = "kd"
    """Stages 3: "kd" (forward KL to the teacher) or "sft" (cross-entropy on the data)."""
    ce_weight: float = 0.0
    """With kd: loss = (1 - ce_weight) * KL + ce_weight * cross-entropy."""
    temperature: float = 1.0
    top_k: int = 0
    """With kd: the teacher's K likeliest tokens only, renormalised; 0 is the whole vocabulary."""
    alignment: str = "l2norm"
    """Stages 1 and 2: "l2norm", "mse" or "nmse" (mse over the target's mean square)."""
    prompt_weight: float = 1.0
    """Weight of prompt tokens in the loss: 1 the full sequence, 0 completions only."""
    freeze: tuple[str, ...] | None = None
    """Groups that stay as they are; None is FROZEN's for the kind."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.1
    """Share of the steps over which the rate rises."""
    decay: float = 0.1
    """Share of the steps over which the rate falls at the end."""
    final: float = 0.02
    """Rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Largest global gradient norm."""
    precision: str = "fp32"
    """"fp32", or "bf16": matrix products in bf16, weights, gates and states in fp32."""
    checkpoint_activations: bool = False
    """Recomputes activations in the backward pass: less memory, a third more time."""
    save_every: int = 100
    """Steps between two saved states; a killed run loses at most these."""
    keep_last: int = 1
    """Saved states that are kept."""
    measure_every: int = 0
    """Tokens between two measurements under both protocols; 0 measures at the end of the stage alone."""

    def __post_init__(self) -> None:
        where = f"stage '{self.name}': "
        _one_of(self.kind, KINDS, where + "kind")
        _one_of(self.objective, ("kd", "sft"), where + "objective")
        _one_of(self.alignment, ("l2norm", "mse", "nmse"), where + "alignment")
        _one_of(self.precision, ("fp32", "bf16"), where + "precision")
        for group in self.freeze or ():
            _one_of(group, GROUPS, where + "freeze")
        if (self.steps > 0) == (self.tokens > 0) or self.steps < 0 or self.tokens < 0:
            raise UsageError(where + "give steps or tokens, one of them, above 0", found=f"{self.steps}, {self.tokens}")
        if min(self.save_every, self.keep_last, self.rows, self.length) < 1 or self.micro_rows < 0:
            raise UsageError(
                where + "rows, length, save_every and keep_last must be at least 1, micro_rows not negative"
            )
        if not (0 <= self.warmup <= 1 and 0 <= self.decay <= 1 and self.warmup + self.decay <= 1):
            raise UsageError(where + "warmup and decay are shares of the steps, together at most 1")
        if not (0 <= self.prompt_weight <= 1 and 0 <= self.ce_weight <= 1):
            raise UsageError(where + "prompt_weight and ce_weight must lie in [0, 1]")
        if self.temperature <= 0 or self.top_k < 0:
            raise UsageError(where + "temperature must be above 0, top_k not negative")

    @property
    def frozen(self) -> tuple[str, ...]:
        """Groups that this stage does not train."""
        return FROZEN[self.kind] if self.freeze is None else self.freeze

    @property
    def tokens_per_step(self) -> int:
        """Token positions of one optimiser step, padding included."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Teacher, student, data and stages; stages run in the order given."""

    name: str
    seed: int = 0
    """Seed of the weights' first values."""
    teacher: TeacherConfig | str
    """A teacher to train, or a checkpoint: a directory, a hub name, builtin:teacher."""
    student: StudentConfig
    data: dict[str, DataConfig]
    stages: tuple[StageConfig, ...]
    suite: str = ""
    """Suite on which the student is measured under both protocols; empty measures nothing."""
    select_by: str = "last"
    """Which state of the stages 3 is exported: the last, or the best by generation, loglikelihood or kl."""
    history: str = ""
    """What a reader of the cards should know of how the recipe came about."""

    def __post_init__(self) -> None:
        _one_of(self.select_by, ("last", "generation", "loglikelihood", "kl"), "select_by")
        if self.select_by in ("generation", "loglikelihood") and not self.suite:
            raise UsageError(f"select_by {self.select_by} needs a suite to measure on", mend="--set suite=miniature")
        for stage in self.stages:
            for source in (stage.data,) if isinstance(stage.data, str) else stage.data:
                if source not in self.data:
                    raise UsageError(
                        f"stage '{stage.name}' reads data '{source}', which the recipe does not have"
                        + nearest(source, self.data),
                        found=f"data: {', '.join(self.data)}",
                    )
        kinds = [stage.kind for stage in self.stages]
        if kinds != sorted(kinds, key=KINDS.index):
            raise UsageError(f"a recipe's stages must follow the order {', '.join(KINDS)}", found=", ".join(kinds))
        if ("pretrain" in kinds) != isinstance(self.teacher, TeacherConfig):
            raise UsageError(
                "a teacher from scratch needs a stage of kind pretrain, a checkpoint none", found=", ".join(kinds)
            )
        if {"3"} & set(kinds) and {"3a", "3b"} & set(kinds):
            raise UsageError("stage 3 combines 3a and 3b: have it or them", found=", ".join(kinds))
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise UsageError("stages must have different names", found=", ".join(names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
