"""What a rule of a policy is about, out of a comparison's item table: paired scores by task.

judged(comparison, Rule(what="hidden gap", of="tasks", margin=3), student=1)  ->  [Judged(name="gsm8k", ...), ...]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import ABSENT, OVERALL, TaskItems
from perplexity_lies.read.policy import SHARES, Rule
from perplexity_lies.read.stats.estimate import CONFIDENCE, Estimate
from perplexity_lies.read.stats.regimes import CONTRAST_WEIGHTS, GAP_WEIGHTS, SAMPLE, Stratum, estimate, stratum
from perplexity_lies.rungs import CONTRASTS, GENERATION

BY_NAME = {contrast.name: contrast for contrast in CONTRASTS}


@dataclass(frozen=True, slots=True)
class Judged:
    """A task, a group or the overall mean, as one rule sees it."""

    name: str
    tasks: tuple[str, ...]
    strata: list[Stratum]
    weights: tuple[float, ...]

    def gap(self, confidence: float = CONFIDENCE) -> Estimate:
        """Student minus teacher in percentage points; below zero is worse, for shares too."""
        return estimate(self.strata, self.weights, confidence)


def rungs_judged(rule: Rule) -> tuple[str, ...]:
    """The rungs whose scores a rule rests on; a share of replies is of generation."""
    contrast = BY_NAME.get(rule.what)
    return (contrast.minus, contrast.of) if contrast else (GENERATION if rule.what in SHARES else rule.what,)


def _cells(items: TaskItems, rule: Rule, student: int) -> tuple[list[list[float]], list[str]]:
    """Rows (teacher, student), of a contrast on both its rungs, and the items' subjects."""
    rungs = [items.rungs[rung] for rung in rungs_judged(rule) if rung in items.rungs]
    if len(rungs) < len(rungs_judged(rule)):
        return [], []
    rows: list[list[float]] = []
    subjects: list[str] = []
    for i in range(len(items.items)):
        if rule.what in SHARES:
            letters = [rungs[0].statuses[side][i] for side in (0, student)]
            row = [] if ABSENT in letters else [float(SHARES[rule.what](letter)) for letter in letters]
        elif all(rung.paired[i] == "1" for rung in rungs):
            row = [score for rung in rungs for side in (0, student) if (score := rung.scores[side][i]) is not None]
        else:
            row = []
        if row:
            rows.append(row)
            subjects.append(items.subjects[i] if items.subjects else "")
    return rows, subjects


def judged(comparison: Comparison, rule: Rule, student: int) -> list[Judged]:
    """One a task, or one in all. Raises UsageError where nothing is there to judge, or a group names an unknown task."""
    known = {items.task: items for items in comparison.items_of}
    if isinstance(rule.of, tuple):
        for task in rule.of:
            if task not in known:
                raise UsageError(
                    f"the policy names the task {task!r}, which was not asked{nearest(task, known)}",
                    found=f"tasks: {', '.join(known)}",
                    mend="of: overall",
                )
        names = list(rule.of)
    else:
        hidden = [row.task for row in comparison.tasks if all(contrast.name in row.contrasts for contrast in CONTRASTS)]
        names = hidden if hidden and rule.of == OVERALL else list(known)
    strata: dict[str, Stratum] = {}
    for name in names:
        rows, subjects = _cells(known[name], rule, student)
        if rows:
            strata[name] = stratum(np.array(rows), subjects, comparison.intervals.clusters.get(name, SAMPLE))
    if not strata or (isinstance(rule.of, tuple) and len(strata) < len(set(names))):
        lacking = ", ".join(name for name in names if name not in strata)
        raise UsageError(
            "there is nothing to judge",
            found=f"no items for {rule.what} in {lacking or 'any task'}",
            mend="plies compare TEACHER STUDENT with a suite that has such tasks",
        )
    weights = CONTRAST_WEIGHTS if rule.what in BY_NAME else GAP_WEIGHTS
    if rule.of == "tasks":
        return [Judged(name, (name,), [one], weights) for name, one in strata.items()]
    name = OVERALL if rule.of == OVERALL else "+".join(strata)
    return [Judged(name, tuple(strata), list(strata.values()), weights)]
