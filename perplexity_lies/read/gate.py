"""The gate: `Comparison` and a margin -> `Verdict`.

Non-inferiority of the generation gap (student minus teacher): a number passes where its whole 95 % interval lies above
-margin, regresses where it lies wholly below, and is inconclusive otherwise. The overall number must pass; a single
task that regresses fails the gate although the mean may pass, since a mean can hide it. Each bound is one-sided at
2.5 %; tasks are not corrected for multiplicity, so among T tasks that stand exactly on the margin about 2.5 T % would
fail the gate by chance.

A bootstrap over fewer than ten clusters is too narrow: such an interval decides nothing. And what was not measured has
not passed: where more than one item in twenty of a task has no pair, what would be a pass is inconclusive.

Knows nothing of reports or of exit codes beyond which verdict has which.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from perplexity_lies.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, UsageError
from perplexity_lies.read.cautions import FEW_CLUSTERS
from perplexity_lies.read.comparison import Comparison, TaskRow, interval, signed
from perplexity_lies.read.stats.bootstrap import CLUSTER_BOOTSTRAP, Estimate, units_needed
from perplexity_lies.record.records import GENERATION

MOST_UNPAIRED = 0.05
"""Share of a task's items that may lack a pair under generation in a pass."""


class Outcome(enum.StrEnum):
    """What the gate says."""

    PASS = "pass"
    REGRESS = "regress"
    INCONCLUSIVE = "inconclusive"


EXIT_CODES = {Outcome.PASS: 0, Outcome.REGRESS: EXIT_GATE_FAILED, Outcome.INCONCLUSIVE: EXIT_INCONCLUSIVE}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One task, or the overall row, held against the margin."""

    task: str
    gap: Estimate
    """Generation gap, pp."""
    outcome: Outcome
    units_needed: int | None
    """Where inconclusive: items (or clusters) at which the interval would clear the margin, were the gap as found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of a comparison, and why."""

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
    """Hold one generation gap against the margin."""
    if gap.low is None or gap.high is None:
        return Outcome.INCONCLUSIVE
    if gap.low > -margin_pp:
        return Outcome.PASS
    return Outcome.REGRESS if gap.high < -margin_pp else Outcome.INCONCLUSIVE


def _few_clusters(row: TaskRow) -> bool:
    """Whether a task's interval rests on too few clusters."""
    return row.generation is not None and row.generation.gap.method == CLUSTER_BOOTSTRAP and row.subjects < FEW_CLUSTERS


def _unmeasured(comparison: Comparison) -> list[str]:
    """Of each task of which too much has no pair under generation, how much."""
    found = []
    for row in comparison.rows:
        left = sum(len(u.items) for u in comparison.unpaired if (u.task, u.what) == (row.task, GENERATION))
        every = left + (row.generation.gap.n if row.generation else 0)
        if left > MOST_UNPAIRED * every:
            found.append(f"{row.task}: {left} of {every} items have no pair under generation")
    return found


def _gate_row(row: TaskRow, margin_pp: float, few: bool) -> GateRow | None:
    if row.generation is None:
        return None
    gap = row.generation.gap
    if few:
        return GateRow(task=row.task, gap=gap, outcome=Outcome.INCONCLUSIVE, units_needed=None)
    outcome = judge(gap, margin_pp)
    needed = units_needed(gap, -margin_pp) if outcome is Outcome.INCONCLUSIVE else None
    return GateRow(task=row.task, gap=gap, outcome=outcome, units_needed=needed)


def _said(row: GateRow) -> str:
    return f"{row.task} {signed(row.gap.value)} pp {interval(row.gap)}"


def decide(comparison: Comparison, margin_pp: float) -> Verdict:
    """Judge the generation gap of `comparison` against a margin in percentage points.

    Inconclusive, whatever the gap, where the artifact guard failed.

    Raises UsageError where the margin is not in (0, 100], or no task is paired under both protocols.
    """
    if not 0 < margin_pp <= 100:
        raise UsageError(f"a margin of {margin_pp} pp cannot be judged", found="it must lie in (0, 100]")
    if comparison.overall is None:
        raise UsageError(
            "there is nothing to judge",
            found="no task has items paired under both protocols",
            mend="plies compare TEACHER STUDENT with a suite that has generation tasks",
        )
    few = [row.task for row in comparison.rows if row is not comparison.overall and _few_clusters(row)]
    judged = tuple(
        found
        for row in comparison.rows
        if (found := _gate_row(row, margin_pp, row.task in few or (row is comparison.overall and bool(few))))
    )
    if comparison.guard_failures:
        named = "; ".join(f"{failure.side}: {failure.check}" for failure in comparison.guard_failures)
        reason = f"the artifact guard failed ({named}), so the gaps may be the engine's doing"
        return Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason, margin_pp=margin_pp, rows=judged)
    *tasks, overall = judged
    worse = [row for row in tasks if row.outcome is Outcome.REGRESS]
    if overall.outcome is Outcome.REGRESS:
        outcome, reason = Outcome.REGRESS, f"{_said(overall)} lies below the margin of −{margin_pp:g} pp"
    elif worse:
        outcome = Outcome.REGRESS
        reason = (
            f"{'; '.join(map(_said, worse))}: below the margin of −{margin_pp:g} pp, though {_said(overall)} is not"
        )
    elif few:
        outcome = Outcome.INCONCLUSIVE
        reason = f"fewer than {FEW_CLUSTERS} clusters: the interval of {', '.join(few)} is too narrow to decide on"
    elif overall.outcome is Outcome.PASS and (unmeasured := _unmeasured(comparison)):
        outcome, reason = Outcome.INCONCLUSIVE, f"not enough was measured: {'; '.join(unmeasured)}"
    elif overall.outcome is Outcome.PASS:
        outcome, reason = Outcome.PASS, f"{_said(overall)} lies above the margin of −{margin_pp:g} pp"
    else:
        outcome, reason = Outcome.INCONCLUSIVE, f"{_said(overall)} reaches across the margin of −{margin_pp:g} pp"
        if overall.units_needed:
            reason += f"; about {overall.units_needed} units in place of {overall.gap.units} would decide it"
    return Verdict(outcome=outcome, reason=reason, margin_pp=margin_pp, rows=(*tasks, overall))
