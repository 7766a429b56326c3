"""The gate: a comparison and a margin -> a verdict on each student.

Non-inferiority of the gap (student minus teacher) on one rung, generation: a number passes where its whole 95 % interval
lies above -margin, regresses where it lies wholly below, and is inconclusive otherwise. The overall number must pass; a
single task that regresses fails the gate although the mean may pass, since a mean can hide it. Each bound is one-sided at
2.5 %; tasks are not corrected for multiplicity, so among T tasks that stand exactly on the margin about 2.5 T % would fail
the gate by chance.

A number without an interval (a handful of clusters, a single item) decides nothing. And what was not measured has not
passed: where more than one item in twenty of a task has no pair, what would be a pass is inconclusive.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from perplexity_lies.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, UsageError
from perplexity_lies.read.cautions import FALLBACK_CEILING
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import TaskRow
from perplexity_lies.read.stats.estimate import Estimate, units_needed
from perplexity_lies.read.wording import interval, signed
from perplexity_lies.rungs import GENERATION, RUNGS

MOST_UNPAIRED = 0.05
"""Share of a task's items that may lack a pair on the judged rung in a pass."""


class Outcome(enum.StrEnum):
    """What the gate says."""

    PASS = "pass"
    REGRESS = "regress"
    INCONCLUSIVE = "inconclusive"


EXIT_CODES = {Outcome.PASS: 0, Outcome.REGRESS: EXIT_GATE_FAILED, Outcome.INCONCLUSIVE: EXIT_INCONCLUSIVE}
WORST_FIRST = (Outcome.REGRESS, Outcome.INCONCLUSIVE, Outcome.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One task, or the overall row, held against the margin."""

    task: str
    gap: Estimate
    """Percentage points, on the judged rung."""
    outcome: Outcome
    units_needed: int | None
    """Where inconclusive: items (or clusters) at which the interval would clear the margin, were the gap as found."""

    def __str__(self) -> str:
        return f"{self.task} {signed(self.gap.value)} pp {interval(self.gap)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of one student, and why."""

    student: str
    """Its label in the comparison."""
    outcome: Outcome
    reason: str
    margin_pp: float
    rows: tuple[GateRow, ...]
    """The tasks, then the overall row."""

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regress, 4 inconclusive."""
        return EXIT_CODES[self.outcome]


def judge(gap: Estimate, margin_pp: float) -> Outcome:
    """Hold one gap against the margin."""
    if gap.low is None or gap.high is None:
        return Outcome.INCONCLUSIVE
    if gap.low > -margin_pp:
        return Outcome.PASS
    return Outcome.REGRESS if gap.high < -margin_pp else Outcome.INCONCLUSIVE


def _unmeasured(comparison: Comparison, rung: str) -> Iterator[str]:
    """One message per task with more than `MOST_UNPAIRED` of its items unpaired."""
    for row in comparison.tasks:
        left = sum(len(found.items) for found in comparison.unpaired if (found.task, found.what) == (row.task, rung))
        every = left + (row.rungs[rung].n if rung in row.rungs else 0)
        if left > MOST_UNPAIRED * every:
            yield f"{row.task}: {left} of {every} items have no pair under {RUNGS[rung].title}"


def _fallbacks(comparison: Comparison, rung: str, student: int) -> str:
    """What to add to a verdict that rests on answers which a fallback rule read; empty where they are few."""
    assert comparison.overall is not None
    both = [(comparison.sides[i].label, comparison.overall.rungs[rung].sides[i]) for i in (0, student)]
    said = [f"{100 * side.fallback:.0f} % of the {label}'s" for label, side in both if side.fallback > FALLBACK_CEILING]
    return f"; a fallback rule read {' and '.join(said)} replies" if said else ""


def _gate_row(row: TaskRow, gap: Estimate, margin_pp: float) -> GateRow:
    outcome = judge(gap, margin_pp)
    needed = units_needed(gap, -margin_pp) if outcome is Outcome.INCONCLUSIVE else None
    return GateRow(task=row.task, gap=gap, outcome=outcome, units_needed=needed)


def decide(comparison: Comparison, margin_pp: float, *, student: int = 1, rung: str = GENERATION) -> Verdict:
    """Judge one student's gap on `rung` against a margin in percentage points; `student` counts from 1.

    Inconclusive, whatever the gap, where the artifact guard failed.

    Raises UsageError where the margin is not in (0, 100], or nothing paired on the rung.
    """
    if not 0 < margin_pp <= 100:
        raise UsageError(
            f"a margin of {margin_pp:g} pp cannot be judged", found="it must lie in (0, 100]", mend="--margin 3"
        )
    if comparison.overall is None or comparison.overall.gap(rung) is None:
        raise UsageError(
            "there is nothing to judge",
            found=f"no task has items paired by {RUNGS[rung].title}",
            mend=f"plies compare TEACHER STUDENT with a suite that has {RUNGS[rung].title} tasks",
        )
    found = [(row, gap) for row in comparison.rows if (gap := row.gap(rung, student))]
    *tasks, overall = (_gate_row(row, gap, margin_pp) for row, gap in found)
    outcome, reason = _verdict(comparison, tasks, overall, margin_pp, rung)
    label, reason = comparison.sides[student].label, reason + _fallbacks(comparison, rung, student)
    reason += f"; PARTIAL: {comparison.partial_why}" if comparison.partial else ""
    return Verdict(student=label, outcome=outcome, reason=reason, margin_pp=margin_pp, rows=(*tasks, overall))


def _verdict(
    comparison: Comparison, tasks: list[GateRow], overall: GateRow, margin_pp: float, rung: str
) -> tuple[Outcome, str]:
    """The outcome and its reason: the first of these that holds."""
    limit = f"the margin of −{margin_pp:g} pp"
    if comparison.guard_failures:
        named = "; ".join(f"{failure.side}: {failure.check}" for failure in comparison.guard_failures)
        return Outcome.INCONCLUSIVE, f"the artifact guard failed ({named}), so the gaps may be the engine's doing"
    if overall.outcome is Outcome.REGRESS:
        return Outcome.REGRESS, f"{overall} lies below {limit}"
    worse = "; ".join(str(row) for row in tasks if row.outcome is Outcome.REGRESS)
    if worse:
        return Outcome.REGRESS, f"{worse}: below {limit}, though {overall} is not"
    without = "; ".join(f"{row.task} has no interval: {row.gap.why}" for row in tasks if row.gap.low is None)
    if without:
        return Outcome.INCONCLUSIVE, without
    if overall.outcome is Outcome.PASS:
        unmeasured = "; ".join(_unmeasured(comparison, rung))
        if unmeasured:
            return Outcome.INCONCLUSIVE, f"not enough was measured: {unmeasured}"
        return Outcome.PASS, f"{overall} lies above {limit}"
    needed = f"; about {overall.units_needed} units in place of {overall.gap.units} would decide it"
    return Outcome.INCONCLUSIVE, f"{overall} reaches across {limit}{needed if overall.units_needed else ''}"


def decide_all(comparison: Comparison, margin_pp: float) -> list[Verdict]:
    """The verdicts on all students, the worst first. Raises as `decide`."""
    verdicts = [decide(comparison, margin_pp, student=i) for i in range(1, len(comparison.sides))]
    return sorted(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.outcome))
