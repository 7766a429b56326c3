"""`Manifest`: what ran on what, with which versions. One typed form, written by the run wing and read by all.

Anything that changes what is computed stands here; nothing here tells of a machine (no absolute path, no host name).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from perplexity_lies.checked import Checked

RUN_FORMAT = 2
"""Version of the run directory's layout. Format 1 had two protocols and one reading a record."""

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts(Checked):
    """What a run keeps of its checkpoint: everything but its place on this machine."""

    name: str
    """As the user typed it."""
    kind: str
    """`local`, `hub`, `builtin` or `endpoint`."""
    revision: str = ""
    """Commit of a hub snapshot; empty for a directory."""
    digest: str
    """The fingerprint: `sha256:...` over the three digests below."""
    weights_digest: str
    """Empty for an endpoint, whose weights cannot be seen."""
    tokenizer_digest: str
    config_digest: str
    """Over config, generation config and, where remote code is allowed, the checkpoint's own Python files."""
    model_type: str = ""
    architecture: str = ""
    """The first of the config's `architectures`; empty where it lists none."""
    dtype: str = ""
    """As stored, e.g. `bfloat16`; `unknown` for pickle."""
    parameters: int = 0
    """Elements of the stored tensors, tied ones once; 0 for pickle, which is not opened to count."""
    has_chat_template: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    unread_weights: tuple[str, ...] = ()
    """Names of weights files that lie beside those that were loaded and measured."""
    url: str = ""
    """Address of an endpoint."""
    served_model: str = ""
    """Name of an endpoint's model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteFacts(Checked):
    """Which suite, and how much of it."""

    name: str
    title: str = ""
    digest: str
    limit: int | None = None
    """First items of each task; None for all."""
    narrowed: tuple[str, ...] = ()
    """In words, what else of the suite was not asked."""

    @property
    def partial(self) -> tuple[str, ...]:
        """In words, why this is not the whole suite; empty where it is."""
        limit = (f"at most {self.limit} items per task were asked",) if self.limit is not None else ()
        return (*limit, *self.narrowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RungFacts(Checked):
    """How a task was asked on one rung."""

    metric: str = ""
    chance: float | None = None
    """Score of a guess, in [0, 1], where the suite knows it."""
    source: str = ""
    """In words: library, benchmark, shots."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The suite's settings of this rung that are not at their default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts(Checked):
    """One task of the suite."""

    name: str
    title: str = ""
    subjects: str = ""
    """`benchmark` where the subjects of its items are the benchmark (strata), `sample` where they are a sample (clusters)."""
    series: str = ""
    """Tasks of one series are one task at several lengths."""
    length_tokens: int = 0
    """The length of its prompts, by the suite's own count; 0 where the suite does not say."""
    rungs: dict[str, RungFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFacts(Checked):
    """What one check of the artifact guard measured."""

    passed: bool | None
    """None where it was not checked; `detail` says why."""
    measured: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding(Checked):
    """What the engine's rounding may do, as the artifact guard took it for this run."""

    nats: float = 1e-4
    """To a continuation's log-likelihood."""
    margin: float = 1e-3
    """To the distance between two logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Checked):
    """One run."""

    format: int = RUN_FORMAT
    complete: bool = False
    """Whether every record that was asked for is here."""
    rungs: tuple[str, ...] = ()
    """Rungs on which every task of the suite that has them was asked."""
    checkpoint: CheckpointFacts
    suite: SuiteFacts
    datasets: dict[str, str] = field(default_factory=dict)
    """Hub id -> digest of its files."""
    engine: dict[str, Plain] = field(default_factory=dict)
    """Engine and options as they were asked for."""
    settings: dict[str, Plain] = field(default_factory=dict)
    """What the engine chose when it loaded: device, dtype, threads."""
    versions: dict[str, str] = field(default_factory=dict)
    """Installed libraries that compute."""
    tasks: tuple[TaskFacts, ...] = ()
    guard: dict[str, GuardFacts] = field(default_factory=dict)
    """Check -> what it found; empty before the guard ran."""
    fingerprint: tuple[dict[str, Plain], ...] = ()
    """Log-likelihoods of fixed texts under these weights."""
    rounding: Rounding = Rounding()
    run_code: dict[str, Plain] = field(default_factory=dict)
    """In which sandbox code of the checkpoint ran, and its limits; empty where none ran."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds, by part of the run."""

    def to_json(self) -> str:
        """Indented JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def task(self, name: str) -> TaskFacts:
        """The task of that name; an empty one where the manifest does not list it."""
        return next((task for task in self.tasks if task.name == name), TaskFacts(name=name))
