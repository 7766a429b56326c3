"""The parts of a comparison: sides, rows of numbers, the item table. Data only, as `comparison.json` holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from perplexity_lies.checked import Checked
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.read.stats.regimes import Clusters
from perplexity_lies.record.manifest import Manifest
from perplexity_lies.record.records import Status
from perplexity_lies.rungs import in_order

OVERALL = "overall"

STATUS_CODES = {status: status.value[0] for status in Status}
"""One letter a status in the item table; `SHORT` and `ABSENT` are no statuses."""
SHORT = "c"
"""An answer was found, in a reply that was cut by its budget."""
ABSENT = "-"
"""There is no record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side(Checked):
    """One checkpoint of a comparison; the first is the baseline."""

    name: str
    """As its run's manifest has it."""
    label: str
    """In sentences and columns: `teacher`, `student`, `student 2`."""
    run: str = field(compare=False)
    """Its run directory; in the file relative to the file."""
    records_digest: str
    """sha256 over the run's records files: a run that changed since is no longer what was compared."""
    manifest: Manifest
    """Without timings and fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideScore(Checked):
    """One checkpoint on one rung of one task."""

    score: Estimate
    """Percent, over the paired items."""
    gap: Estimate | None = None
    """Percentage points, this side minus the baseline; None for the baseline."""
    retention: Estimate | None = None
    """Percent of the baseline's score above chance that this side keeps. None for the baseline, where the baseline is not above
    chance, and where answers are ranked and chance is not known."""
    gained: int = 0
    """Items on which this side scores higher than the baseline."""
    lost: int = 0
    mcnemar_p: float = 1.0
    holm_p: float | None = None
    """`mcnemar_p`, adjusted for the tasks of this rung; None in the overall row."""
    benjamini_hochberg_p: float | None = None
    records: int
    """All records of the run, paired or not: what the shares below are shares of."""
    statuses: dict[Status, int]
    coverage: float
    """Share of records in which an answer was found and judged."""
    fallbacks: int = 0
    """Records whose answer was found by a fallback rule, not in the form that was asked for."""
    truncation: float
    """Share of records whose reply hit its token budget; 0 where answers are ranked."""
    cut_prompts: int = 0
    """Records whose prompt lost tokens on its left because it did not fit the context."""
    beyond_context: int = 0
    """Records with tokens at positions beyond the checkpoint's stated context."""
    bos_before_template: int = 0
    """Records whose prompt got a BOS that the chat template does not write."""
    never_right: dict[str, int] = field(default_factory=dict)
    """Why an item could not be had right by any checkpoint -> records."""

    @property
    def fallback(self) -> float:
        """Share of records whose answer a fallback rule found."""
        return self.fallbacks / self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class RungRow(Checked):
    """All sides on one rung of one task, or of the tasks of the overall row."""

    rung: str
    metric: str
    """The suite's; that of `extractor` where the replies were read again by another one."""
    source: str
    chance: float | None
    """Score of guessing, in [0, 1], where the suite knows it."""
    sides: tuple[SideScore, ...]
    """In the order of `Comparison.sides`."""
    readings: dict[str, tuple[SideScore, ...]] = field(default_factory=dict)
    """Extractor -> the same replies read by it, for extractors beside the headline's."""
    extractor: str = ""
    """What read the answers that the numbers come from; several, with commas between, where records differ."""

    @property
    def n(self) -> int:
        """Paired items."""
        return self.sides[0].score.n


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow(Checked):
    """One task, or the overall row."""

    task: str
    title: str
    subjects: int
    """Clusters among the paired items; 1 where the task has none."""
    rungs: dict[str, RungRow]
    """In the order of the table of rungs; a rung on which nothing paired is not here."""
    contrasts: dict[str, tuple[Estimate | None, ...]] = field(default_factory=dict)
    """Contrast -> one estimate a side, percentage points, over the items paired on both its rungs; None for the baseline."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", in_order(self.rungs))

    def gap(self, rung: str, side: int = 1) -> Estimate | None:
        """A side's gap on a rung; None where nothing paired."""
        return self.rungs[rung].sides[side].gap if rung in self.rungs else None

    def contrast(self, name: str, side: int = 1) -> Estimate | None:
        """A side's contrast, such as the hidden gap; None where it cannot be had."""
        return self.contrasts[name][side] if name in self.contrasts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired(Checked):
    """Items that did not enter a number, and why."""

    task: str
    what: str
    """A rung's name, or a contrast's."""
    reason: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution(Checked):
    """Something to know before a number is believed."""

    kind: str
    """`saturated`, `chance`, `coverage`, `truncation`, `few items`, `no interval`, `settings`, `seeds` ..."""
    task: str
    """Empty where it concerns the whole comparison."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RungItems(Checked):
    """One rung's columns of a task's items; every entry has one place for each item."""

    paired: str
    """`1` where the item entered the gap, else `0`."""
    scores: tuple[tuple[float | None, ...], ...]
    """By side: mean over seeds, in [0, 1]; None where there is no record."""
    statuses: tuple[str, ...]
    """By side: a letter an item (`STATUS_CODES`, `SHORT`, `ABSENT`); of several seeds the first that is not `scored`."""
    fragile: tuple[tuple[int, ...], ...]
    """By side: places of items whose answer the engine's own rounding could change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItems(Checked):
    """A task's items, in sorted order."""

    task: str
    items: tuple[str, ...]
    subjects: tuple[str, ...]
    """By item; empty where the task has no subjects."""
    rungs: dict[str, RungItems]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", in_order(self.rungs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals(Checked):
    """How the intervals were made; which method is in each row, by name."""

    confidence: float
    clusters: dict[str, Clusters]
    """Task -> what its subjects are, for tasks with several."""


class GuardFailure(NamedTuple):
    """A check of the artifact guard that one side's engine did not pass."""

    side: str
    check: str
    detail: str


def guard_failures(sides: tuple[Side, ...]) -> tuple[GuardFailure, ...]:
    """The checks that failed, side by side."""
    return tuple(
        GuardFailure(side.label, name, check.detail)
        for side in sides
        for name, check in sorted(side.manifest.guard.items())
        if check.passed is False
    )
