"""What a recipe will cost, before anything starts: steps, FLOPs, memory and hours of every stage on a device.

FLOPs per token: 2 per weight and product. N counts matrix weights without the embedding; a backward pass costs 2N for the
gradient of the input and 2N for that of the trained weights:

    teacher     2N                              all stages but `pretrain` and sft
    student     2N + 2N + 2N_trained            stages 3 and pretrain; once more 2N with checkpoint_activations
                the mixers' N, of all layers    stages 1 and 2 (an upper bound: their inputs, the teacher's, need no gradient)
    head        2Vd for each of: teacher's logits, student's logits, gradient of the input, of the weights if trained;
                only where a token is scored (completions alone: COMPLETION_SHARE)
    attention   2 * length * heads * head_dim   causal, as if a document filled the row; twice more in a backward pass
    mixing      a mixer's products besides its weights (`shapes.layer_cost`); twice more in a backward pass

    hours = FLOPs / (share * the device's peak)

Memory is one process's: float32 weights of teacher and student, gradient and optimiser state of what is trained, what
autograd keeps of a micro-batch, and a chunk of logits. Everything is arithmetic over shapes; only `share` must be measured,
and the shares in DEVICES are planning estimates.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.plan.check import check_names
from distill.plan.shapes import (
    LayerCost,
    TeacherShape,
    Weights,
    kept_layers,
    layer_cost,
    teacher_shape,
    weights_of,
    with_attention,
)
from distill.recipe.settings import GROUPS, Recipe, StageConfig
from distill.students.convert import student_config
from distill.students.hybrid import ATTENTION, HybridConfig
from distill.training.losses import CHUNK_BYTES
from perplexity_lies.errors import MissingError, UsageError, nearest
from perplexity_lies.files import read_json

COMPLETION_SHARE = 0.8
"""Share of the tokens that are scored where prompts are not; assumed (long answers to short prompts)."""
BYTES_PER_TOKEN = 4
"""Bytes of text per token, a rough figure for a warning."""
CHUNKS_HELD = 3
"""Logit chunks in memory at the same time: the teacher's, the student's, the gradient."""
PART_WORDS = ("teacher", "student", "head", "attention", "mixing")
MEMORY_WORDS = ("weights", "optimiser", "activations", "logits")


@dataclass(frozen=True, slots=True)
class Device:
    """A processor's dense peak by its data sheet, and the share of it that training is expected to reach."""

    bf16_flops: float
    """FLOPs per second."""
    fp32_flops: float
    memory_bytes: float
    """0 = not known."""
    share: float = 0.2
    """Assumed share of the peak where recurrences run. Not measured on GPUs; small matrices and kernels for the recurrence."""
    attention_share: float = 0.35
    """Assumed share where no recurrence runs, in `pretrain`."""


DEVICES = {
    "h200": Device(989e12, 67e12, 141e9),
    "h100": Device(989e12, 67e12, 80e9),
    "a100": Device(312e12, 19.5e12, 80e9),
    "l40s": Device(362e12, 91.6e12, 48e9),
    "l4": Device(121e12, 30.3e12, 24e9),
    "rtx4090": Device(165e12, 82.6e12, 24e9),
    "mi300x": Device(1307e12, 163.4e12, 192e9),
    "cpu": Device(95e9, 95e9, 0, share=0.2, attention_share=0.55),
}
"""`cpu` is one core of an EPYC server: what its matrix products reach, and shares measured on the miniature recipe's stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage on one device."""

    stage: StageConfig
    trained: int
    """Parameters."""
    flops: Mapping[str, float]
    """FLOPs of the whole stage, by PART_WORDS."""
    memory_bytes: Mapping[str, float]
    """Bytes at the peak, by MEMORY_WORDS."""
    share: float
    hours: float

    @property
    def tokens(self) -> int:
        """Token positions run over."""
        return self.stage.steps * self.stage.tokens_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Memory of generation for one row; key/value cache in bf16."""

    teacher_bytes_per_token: int
    student_bytes_per_token: int
    state_bytes: int
    """State of all mixers, the same at any length."""

    def tokens_at(self, saved: float) -> float:
        """Length from which the student's cache is smaller by the share `saved`; infinite where it never is."""
        gain = (1 - saved) * self.teacher_bytes_per_token - self.student_bytes_per_token
        return self.state_bytes / gain if gain > 0 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe's cost."""

    recipe: str
    device: str
    teacher: TeacherShape
    teacher_parameters: int
    student_parameters: int
    kept: int
    layers: int
    stages: tuple[StagePlan, ...]
    cache: CachePlan
    warnings: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Hours of all stages."""
        return sum(stage.hours for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Model:
    """A model's weights, and the cost of its layers per token at one row length."""

    config: HybridConfig
    weights: Weights
    costs: tuple[LayerCost, ...]

    def matrices(self, groups: tuple[str, ...] = GROUPS) -> int:
        """Matrix weights of these groups."""
        return sum(count for group, count in self.weights.matrices.items() if group in groups)

    def mixing(self) -> tuple[float, float]:
        """FLOPs per token and pass of attention and of recurrences."""
        types = self.config.layer_types or ()
        attention = sum(cost.mixing_flops for cost, kind in zip(self.costs, types, strict=True) if kind == ATTENTION)
        return attention, sum(cost.mixing_flops for cost in self.costs) - attention


class Scales:
    """Costs models; each layer type is costed once per length."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, int], LayerCost] = {}

    def weigh(self, config: HybridConfig, length: int) -> Model:
        """The costs of this configuration; every call must be for the same teacher and student."""
        types = config.layer_types or ()
        for layer_type in set(types):
            if (layer_type, length) not in self._costs:
                self._costs[layer_type, length] = layer_cost(config, layer_type, length)
        return Model(config, weights_of(config), tuple(self._costs[layer_type, length] for layer_type in types))


def stage_flops(stage: StageConfig, teacher: Model, student: Model) -> dict[str, float]:
    """FLOPs of a whole stage, by PART_WORDS. `student` is the teacher itself in `pretrain`, all mixers in 1 and 2."""
    trained = tuple(group for group in GROUPS if group not in stage.frozen)
    attention, mixing = student.mixing()
    aligning = stage.kind in ("1", "2")
    taught = aligning or (stage.kind != "pretrain" and stage.objective == "kd")
    passes = 3 + stage.checkpoint_activations
    body, head = student.matrices(("qk", "mixer") if aligning else GROUPS), 0.0
    if not aligning:
        products = 2 + taught + ("embedding" in trained)
        scored = 1.0 if stage.prompt_weight > 0 else COMPLETION_SHARE
        head = 2 * products * scored * student.config.vocab_size * student.config.hidden_size
    parts = {
        "teacher": 2 * teacher.matrices() if taught else 0,
        "student": 2 * body * (passes - 1) + 2 * student.matrices(trained),
        "head": head,
        "attention": passes * attention + (teacher.mixing()[0] if taught else 0),
        "mixing": passes * mixing,
    }
    return {word: stage.steps * stage.tokens_per_step * part for word, part in parts.items()}


def stage_memory(stage: StageConfig, teacher: Model, student: Model, trained: int, device: str) -> dict[str, float]:
    """Bytes at the peak of a stage, by MEMORY_WORDS, on one process."""
    micro = (stage.micro_rows or stage.rows) * stage.length
    config = student.config
    hidden = 4 * micro * config.hidden_size
    matrices = sum(count for group, count in student.weights.matrices.items() if group not in stage.frozen)
    moments = 8 * trained - (4 * matrices if stage.muon_lr else 0)
    own = 0 if stage.kind == "pretrain" else 4 * teacher.weights.total
    if stage.kind in ("1", "2"):
        # One mixer at a time, while the teacher is under way.
        activations = 4 * hidden + micro * max(cost.mixer_saved_bytes for cost in student.costs)
        logits = 0
    else:
        layers = [micro * cost.saved_bytes for cost in student.costs]
        activations = hidden * len(layers) + max(layers) if stage.checkpoint_activations else sum(layers)
        activations += 3 * hidden  # final states of teacher and student, and their gradient
        chunk = CHUNK_BYTES["cpu" if device == "cpu" else "cuda"]
        logits = CHUNKS_HELD * min(chunk, 4 * micro * config.vocab_size)
    return {
        "weights": own + 4 * student.weights.total,
        "optimiser": 4 * trained + moments,
        "activations": activations,
        "logits": logits,
    }


def shares_from(path: Path) -> dict[str, float]:
    """Measured shares of peak by kind of stage, from a JSON file: {"stages": {"3a": {"share_of_peak": 0.23}, ...}}.

    Raises MissingError when there is no such file, UsageError when it says something else.
    """
    if not path.is_file():
        raise MissingError(
            f"no measurement {path}", found="no such file", mend="python benchmarks/stage_speed.py writes one"
        )
    mend = '{"stages": {"3a": {"share_of_peak": 0.2}}}'
    raw = read_json(path, f"{path} is not a measurement of stages", mend)
    try:
        return {str(kind): float(stage["share_of_peak"]) for kind, stage in raw["stages"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a measurement of stages", found=repr(error), mend=mend) from error


def _data_warnings(recipe: Recipe) -> list[str]:
    """A warning for each source of local files that is too small for the stages that read it."""
    needed: dict[str, float] = {}
    for stage in recipe.stages:
        shares = {stage.data: 1.0} if isinstance(stage.data, str) else stage.data
        for name, share in shares.items():
            tokens = stage.steps * stage.tokens_per_step * share / sum(shares.values())
            needed[name] = max(needed.get(name, 0.0), tokens)
    warnings = []
    for name, tokens in needed.items():
        source = recipe.data[name].source
        files = [Path(found) for found in glob.glob(source, recursive=True) if Path(found).is_file()]
        held = sum(path.stat().st_size for path in files) / BYTES_PER_TOKEN
        if files and held < tokens:
            warnings.append(
                f"data '{name}' goes round about {tokens / held:.1f} times: {tokens / 1e6:.1f}M tokens are asked of "
                f"{held / 1e6:.1f}M (at {BYTES_PER_TOKEN} bytes each)"
            )
    return warnings


def _cache(teacher: HybridConfig, student: Model) -> CachePlan:
    per_layer = 2 * 2 * teacher.num_key_value_heads * teacher.head_dim
    types = student.config.layer_types or ()
    return CachePlan(
        teacher_bytes_per_token=per_layer * len(types),
        student_bytes_per_token=per_layer * sum(kind == ATTENTION for kind in types),
        state_bytes=sum(cost.state_bytes for cost in student.costs),
    )


def plan(recipe: Recipe, device: str = "h200", shares: Mapping[str, float] | None = None) -> Plan:
    """The plan of a recipe on one of DEVICES; `shares` of peak by kind of stage replace the assumed ones.

    Raises UsageError for an unknown device or a teacher that no student can be made of, MissingError for a teacher whose
    shape is nowhere to be found.
    """
    if device not in DEVICES:
        raise UsageError(
            f"no device '{device}'{nearest(device, DEVICES)}", found=", ".join(DEVICES), mend="--device h200"
        )
    check_names(recipe)
    processor, shape = DEVICES[device], teacher_shape(recipe.teacher)
    mixed = student_config(shape.config, recipe.student)
    layers = mixed.num_hidden_layers
    kept = kept_layers(recipe.student, layers)
    attending, hybrid = with_attention(mixed, tuple(range(layers))), with_attention(mixed, kept)
    scales, stages, warnings = Scales(), [], _data_warnings(recipe)
    for stage in recipe.stages:
        teacher = scales.weigh(attending, stage.length)
        aligning = stage.kind in ("1", "2")
        student = teacher if stage.kind == "pretrain" else scales.weigh(mixed if aligning else hybrid, stage.length)
        trained = student.weights.trained(stage.frozen)
        flops = stage_flops(stage, teacher, student)
        memory = stage_memory(stage, teacher, student, trained, device)
        assumed = processor.attention_share if stage.kind == "pretrain" else processor.share
        share = (shares or {}).get(stage.kind, assumed)
        peak = processor.bf16_flops if stage.precision == "bf16" else processor.fp32_flops
        hours = sum(flops.values()) / (share * peak) / 3600
        stages.append(
            StagePlan(stage=stage, trained=trained, flops=flops, memory_bytes=memory, share=share, hours=hours)
        )
        if 0 < processor.memory_bytes < sum(memory.values()):
            warnings.append(
                f"stage '{stage.name}' needs about {sum(memory.values()) / 1e9:.0f} GB, {device} has "
                f"{processor.memory_bytes / 1e9:.0f}: fewer micro_rows, or checkpoint_activations"
            )
    final = scales.weigh(hybrid, recipe.stages[-1].length)
    return Plan(
        recipe=recipe.name, device=device, teacher=shape, teacher_parameters=weights_of(attending).total,
        student_parameters=final.weights.total, kept=len(kept), layers=layers, stages=tuple(stages),
        cache=_cache(attending, final), warnings=tuple(warnings),
    )  # fmt: skip
