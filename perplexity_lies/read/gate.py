"""The gate: a comparison and a policy -> a verdict on each student.

    decide(comparison, 3.0)                         ->  Verdict(outcome="inconclusive", reason="overall −1.2 pp ...", ...)
    decide(comparison, load_policy(Path("gate.yaml")))

Non-inferiority: a number passes where its whole 95 % interval lies above -margin, regresses where it lies wholly below, and is
inconclusive otherwise; each bound is one-sided at 2.5 %. A rule about every task calls one a regression at a level corrected
by Holm (1979) for their number, so that 15 tasks on the margin fail together in 2.5 % of comparisons, not 30. A pass needs
every rule, which needs no correction (an intersection-union test, Berger 1982).

What cannot show a gap has not passed: floor, chance, saturation, coverage, truncation, fallback and missing pairs turn a pass,
and a failed guard or prompts that lost their beginning turn any outcome, into inconclusive, and the reason names them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass

from perplexity_lies.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE
from perplexity_lies.read.cautions import doubts
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.judged import Judged, judged, rungs_judged
from perplexity_lies.read.numbers import OVERALL
from perplexity_lies.read.policy import NOT_WORSE, SHARES, Policy, Rule, one_margin
from perplexity_lies.read.stats.estimate import CONFIDENCE, Estimate, units_needed
from perplexity_lies.read.wording import interval, signed
from perplexity_lies.rungs import GENERATION, RUNGS

MOST_UNPAIRED = 0.05
"""Share of a task's items that may lack a pair on a judged rung in a pass."""
VOIDS = "cut prompts"
"""The kind of doubt under which not even a regression stands: other questions were asked than meant."""


class Outcome(enum.StrEnum):
    """What the gate says."""

    PASS = "pass"
    REGRESS = "regress"
    INCONCLUSIVE = "inconclusive"


EXIT_CODES = {Outcome.PASS: 0, Outcome.REGRESS: EXIT_GATE_FAILED, Outcome.INCONCLUSIVE: EXIT_INCONCLUSIVE}
WORST_FIRST = (Outcome.REGRESS, Outcome.INCONCLUSIVE, Outcome.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One task, group or overall mean, held against one rule's margin."""

    task: str
    what: str
    """The rule's: a rung, a contrast or a share of replies."""
    gap: Estimate
    """Percentage points; below zero is worse."""
    margin_pp: float
    outcome: Outcome
    units_needed: int | None
    """Where inconclusive: items (or clusters) at which the interval would clear the margin, were the gap as found."""
    doubts: tuple[str, ...] = ()
    """Why a pass would not be one, or, where prompts were cut, why nothing can be said."""
    needs_pass: bool = True
    """Whether its rule requires a pass, not merely no regression."""

    def __str__(self) -> str:
        what = "" if self.what == GENERATION else f"{RUNGS[self.what].title if self.what in RUNGS else self.what} "
        return f"{self.task} {what}{signed(self.gap.value)} pp {interval(self.gap)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of one student, and why."""

    student: str
    """Its label in the comparison."""
    outcome: Outcome
    reason: str
    rows: tuple[GateRow, ...]
    """In the order of the policy's rules."""
    partial: bool
    """Whether a limit was set, so that not the whole suite was asked."""

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regress, 4 inconclusive."""
        return EXIT_CODES[self.outcome]

    def __str__(self) -> str:
        return f"{'PARTIAL ' if self.partial else ''}{self.outcome}: {self.reason}"


def judge(gap: Estimate, margin_pp: float) -> Outcome:
    """Hold one gap against the margin."""
    if gap.low is None or gap.high is None:
        return Outcome.INCONCLUSIVE
    if gap.low > -margin_pp:
        return Outcome.PASS
    return Outcome.REGRESS if gap.high < -margin_pp else Outcome.INCONCLUSIVE


def _surely_worse(found: list[Judged], margin_pp: float) -> set[str]:
    """Names of those that lie beyond the margin, by Holm over all of `found`."""
    left, worse = list(found), set[str]()
    while left:
        confidence = 1 - (1 - CONFIDENCE) / len(left)
        now = [one for one in left if judge(one.gap(confidence), margin_pp) is Outcome.REGRESS]
        if not now:
            break
        worse |= {one.name for one in now}
        left = [one for one in left if one.name not in worse]
    return worse


def _unmeasured(comparison: Comparison, task: str, rung: str) -> Iterator[str]:
    """A message where more than `MOST_UNPAIRED` of a task's items are unpaired."""
    left = sum(len(found.items) for found in comparison.unpaired if (found.task, found.what) == (task, rung))
    row = next(row for row in comparison.tasks if row.task == task)
    every = left + (row.rungs[rung].n if rung in row.rungs else 0)
    if left > MOST_UNPAIRED * every:
        yield f"{task}: {left} of {every} items have no pair under {RUNGS[rung].title}"


def _doubts(comparison: Comparison, rule: Rule, one: Judged, student: int) -> tuple[list[str], bool]:
    """What keeps a pass from being one, and whether it voids a regression too."""
    said: list[str] = []
    void = False
    labels = [side.label for side in comparison.sides]
    for rung in rungs_judged(rule):
        for row in comparison.tasks:
            if row.task not in one.tasks and not (
                one.name == OVERALL and row.task in _unpaired_tasks(comparison, rung)
            ):
                continue
            said += _unmeasured(comparison, row.task, rung)
            if rung in row.rungs and rule.what not in SHARES:
                for found in doubts(row.task, row.rungs[rung], labels, student):
                    said.append(f"{row.task}, {found.kind}: {found.text}")
                    void |= found.kind == VOIDS
    return said, void


def _unpaired_tasks(comparison: Comparison, rung: str) -> set[str]:
    return {found.task for found in comparison.unpaired if found.what == rung}


def _rows(comparison: Comparison, rule: Rule, student: int) -> Iterator[GateRow]:
    found = judged(comparison, rule, student)
    worse = _surely_worse(found, rule.margin)
    for one in found:
        gap = one.gap()
        outcome = judge(gap, rule.margin)
        if outcome is Outcome.REGRESS and one.name not in worse:
            outcome = Outcome.INCONCLUSIVE
        needed = units_needed(gap, -rule.margin) if outcome is Outcome.INCONCLUSIVE else None
        said, void = _doubts(comparison, rule, one, student)
        if void or (said and outcome is Outcome.PASS):
            outcome = Outcome.INCONCLUSIVE
        yield GateRow(
            task=one.name, what=rule.what, gap=gap, margin_pp=rule.margin, outcome=outcome, units_needed=needed,
            doubts=tuple(said), needs_pass=rule.require != NOT_WORSE,
        )  # fmt: skip


def decide(comparison: Comparison, policy: Policy | float, *, student: int = 1, rung: str = GENERATION) -> Verdict:
    """Judge one student, counted from 1, by a policy; a number is the margin, in points, of the gap on `rung`.

    Raises UsageError where a margin is not in (0, 100], nothing paired that a rule is about, or a group names an unknown task.
    """
    rules = (policy if isinstance(policy, Policy) else one_margin(policy, rung)).rules
    rows = [row for rule in rules for row in _rows(comparison, rule, student)]
    outcome, reason = _verdict(comparison, rows)
    if comparison.guard_failures:
        rows = [dataclasses.replace(row, outcome=Outcome.INCONCLUSIVE) for row in rows]
    label = comparison.sides[student].label
    reason += f"; not the whole suite: {comparison.partial_why}" if comparison.partial else ""
    return Verdict(student=label, outcome=outcome, reason=reason, rows=tuple(rows), partial=comparison.partial)


def _verdict(comparison: Comparison, rows: list[GateRow]) -> tuple[Outcome, str]:
    """The outcome and its reason: the first of these that holds."""
    if comparison.guard_failures:
        named = "; ".join(f"{failure.side}: {failure.check}" for failure in comparison.guard_failures)
        return Outcome.INCONCLUSIVE, f"the artifact guard failed ({named}), so the gaps may be the engine's doing"
    worse = [row for row in rows if row.outcome is Outcome.REGRESS]
    if worse:
        tasks = len({row.task for row in rows} - {OVERALL})
        corrected = f" (Holm over {tasks} tasks)" if tasks > 1 and any(row.task != OVERALL for row in worse) else ""
        return Outcome.REGRESS, f"{_listed(worse, 'below')}{corrected}"
    said = [f"{row.task} has no interval: {row.gap.why}" for row in rows if row.gap.low is None]
    said += [_crossing(row) for row in rows if row.needs_pass and row.gap.why == "" and _beyond(row)]
    doubted = [doubt for row in rows for doubt in row.doubts if row.needs_pass or row.outcome is Outcome.INCONCLUSIVE]
    if doubted:
        said.append(f"not enough was measured: {'; '.join(dict.fromkeys(doubted))}")
    if said:
        return Outcome.INCONCLUSIVE, "; ".join(dict.fromkeys(said))
    return Outcome.PASS, _listed([row for row in rows if row.needs_pass] or rows, "above")


def _listed(rows: list[GateRow], where: str) -> str:
    """`a −27.5 pp [...], b ... below the margin of −3 pp; ...`: by margin."""
    by_margin: dict[float, list[str]] = {}
    for row in rows:
        by_margin.setdefault(row.margin_pp, []).append(str(row))
    return "; ".join(f"{', '.join(named)} {where} the margin of −{margin:g} pp" for margin, named in by_margin.items())


def _beyond(row: GateRow) -> bool:
    return judge(row.gap, row.margin_pp) is not Outcome.PASS


def _crossing(row: GateRow) -> str:
    limit = f"the margin of −{row.margin_pp:g} pp"
    if judge(row.gap, row.margin_pp) is Outcome.REGRESS:
        return f"{row} lies below {limit}, which chance would do to one of so many tasks"
    needed = f"; about {row.units_needed} units in place of {row.gap.units} would decide it" if row.units_needed else ""
    return f"{row} reaches across {limit}{needed}"


def decide_all(comparison: Comparison, policy: Policy | float) -> list[Verdict]:
    """The verdicts on all students, the worst first. Raises as `decide`."""
    verdicts = [decide(comparison, policy, student=i) for i in range(1, len(comparison.sides))]
    return sorted(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.outcome))
