"""A recipe: everything that makes a teacher and its student, in one YAML file.

Every budget, rate and seed lives there; a run directory keeps the resolved copy. Unknown keys are refused with the
nearest known name. Knows nothing of torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from perplexity_lies.errors import MissingError, UsageError, nearest
from suites.miniature.stream import Mixture

KINDS = ("pretrain", "1", "2", "3a", "3b")
"""What a stage may be: the teacher's own training, or a step of distillation."""


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
    """A hybrid student: which share of the layers keeps softmax attention, and how KDA is scaled."""

    keep: int
    """Layers that keep softmax attention; which ones is for `distill.selection` to say."""
    query_scale: float | None = None
    """Factor on KDA queries; None means head_dim ** -0.5."""
    chunk_size: int = 16
    """Tokens per chunk."""
    selection_batches: int = 8
    """Batches on which a layer set is scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage of training."""

    name: str
    kind: str
    """One of KINDS."""
    stream: str
    """Which of the recipe's streams feeds it."""
    stream_seed: int
    steps: int
    muon_lr: float
    """Peak rate of Muon on matrices; 0 leaves them to AdamW."""
    adamw_lr: float
    """Peak rate of AdamW."""
    prompt_weight: float
    """Weight of prompt tokens in the loss: 1 all tokens, 0 completions only."""
    weight_decay: float = 0.0
    warmup: float = 0.03
    """Share of the steps over which the rate rises."""
    decay: float = 0.4
    """Share of the steps over which the rate falls at the end."""
    final: float = 0.02
    """Rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Largest global gradient norm."""
    save_every: int = 100
    """Steps between two saved states; a killed run loses at most these."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"stage '{self.name}': kind must be one of {', '.join(KINDS)}", found=repr(self.kind))
        if self.steps < 1 or self.save_every < 1:
            raise UsageError(f"stage '{self.name}': steps and save_every must be at least 1")
        if not (0 <= self.warmup <= 1 and 0 <= self.decay <= 1 and self.warmup + self.decay <= 1):
            raise UsageError(f"stage '{self.name}': warmup and decay are shares of the steps, together at most 1")
        if not 0 <= self.prompt_weight <= 1:
            raise UsageError(f"stage '{self.name}': prompt_weight must lie in [0, 1]", found=str(self.prompt_weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Teacher, student, streams and stages; stages run in the order given."""

    name: str
    seed: int
    """Seed of the weights' first values."""
    rows: int
    """Rows per batch."""
    length: int
    """Tokens per row."""
    teacher: TeacherConfig
    student: StudentConfig
    streams: dict[str, Mixture]
    stages: tuple[StageConfig, ...]
    history: str = ""
    """What a reader of the cards should know of how the recipe came about."""

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage.stream not in self.streams:
                raise UsageError(
                    f"stage '{stage.name}' reads stream '{stage.stream}', which the recipe does not have"
                    + nearest(stage.stream, self.streams),
                    found=f"streams: {', '.join(self.streams)}",
                )
        kinds = [stage.kind for stage in self.stages]
        order = sorted(kinds, key=KINDS.index)
        if kinds != order or set(kinds) != set(KINDS):
            raise UsageError(
                "a recipe's stages must be of kinds pretrain, 1, 2, 3a, 3b, each at least once and in this order",
                found=", ".join(kinds),
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        return dataclasses.asdict(self)


def _build(cls: Any, raw: Any, where: str) -> Any:
    """`cls` from a mapping. Raises UsageError on what is not a mapping, unknown keys and missing keys."""
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping", found=repr(raw))
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            raise UsageError(f"{where} has an unknown key '{key}'{nearest(str(key), known)}", found=", ".join(known))
    lacking = [n for n, f in known.items() if n not in raw and f.default is dataclasses.MISSING]
    if lacking:
        raise UsageError(f"{where} lacks: {', '.join(lacking)}")
    return cls(**raw)


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe from YAML text. Raises UsageError saying what is wrong and where."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not YAML", found=str(error)) from error
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping", found=repr(raw))
    raw = dict(raw)
    for key, cls in (("teacher", TeacherConfig), ("student", StudentConfig)):
        if key in raw:
            raw[key] = _build(cls, raw[key], f"{where}: {key}")
    if isinstance(raw.get("streams"), dict):
        raw["streams"] = {n: _build(Mixture, s, f"{where}: streams.{n}") for n, s in raw["streams"].items()}
    if isinstance(raw.get("stages"), list):
        raw["stages"] = tuple(
            _build(StageConfig, s, f"{where}: stage number {i}") for i, s in enumerate(raw["stages"], 1)
        )
    recipe: Recipe = _build(Recipe, raw, where)
    return recipe


def load_recipe(name: str) -> Recipe:
    """A bundled recipe by name, or a recipe file by path. Raises MissingError when there is neither."""
    bundled = resources.files("distill") / "recipes"
    names = sorted(entry.name.removesuffix(".yaml") for entry in bundled.iterdir() if entry.name.endswith(".yaml"))
    if name in names:
        return parse_recipe((bundled / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe '{name}'")
    path = Path(name)
    if not path.is_file():
        raise MissingError(
            f"no recipe '{name}'{nearest(name, names)}",
            found=f"bundled recipes: {', '.join(names)}",
            mend=f"python -m distill run {names[0]} --out DIR",
        )
    return parse_recipe(path.read_text(encoding="utf-8"), str(path))
