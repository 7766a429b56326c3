"""How numbers of a comparison are said: signs, intervals, the headline. Sentences say no more than the intervals do."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from perplexity_lies.read.numbers import GuardFailure, Side, TaskRow
from perplexity_lies.read.stats.estimate import Estimate
from perplexity_lies.rungs import HIDDEN_GAP, RUNGS, trunk


def signed(value: float) -> str:
    """A gap to one decimal with its sign, and a true minus: `−2.4`, `+0.3`, `0.0`."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(found: Estimate, *, sign: bool = True) -> str:
    """`[−3.1, −1.7]`; `no interval` where there is none."""
    if found.low is None or found.high is None:
        return "no interval"
    low, high = (signed(bound) if sign else f"{bound:.1f}" for bound in (found.low, found.high))
    return f"[{low}, {high}]"


def headline(overall: TaskRow | None, students: Sequence[Side], failures: Sequence[GuardFailure]) -> str:
    """One or two sentences a student; with several students each is named."""
    if failures:
        named = ", ".join(f"{failure.side}: {failure.check}" for failure in failures)
        return f"The guard failed, so these numbers are not a finding ({named})."
    if overall is None:
        return "No task has items that pair, so there is no gap to report."
    several = len(students) > 1
    said = [
        _sentences(overall, side, f"{student.label} ({student.name})" if several else "the student")
        for side, student in enumerate(students, 1)
    ]
    return " ".join([*said, *_cut_prompts(overall, ["teacher", *(student.label for student in students)])])


def _cut_prompts(overall: TaskRow, labels: Sequence[str]) -> list[str]:
    """A sentence where prompts lost their beginning: the numbers are then not about the questions that were meant."""
    cut = [
        f"{side.cut_prompts} of {side.records} of the {label}'s {RUNGS[rung].title} prompts"
        for rung, row in overall.rungs.items()
        for label, side in zip(labels, row.sides, strict=True)
        if side.cut_prompts
    ]
    return (
        [f"Not all was asked as meant: {', '.join(cut)} did not fit the context and lost their beginning."]
        if cut
        else []
    )


def _sentences(row: TaskRow, side: int, who: str) -> str:
    gaps = {rung: gap for rung in row.rungs if (gap := row.gap(rung, side))}
    first, *others = (
        f"{RUNGS[rung].clause} {who if i == 0 else 'it'} is {_standing(gap.value, 'its teacher' if i == 0 else '')}"
        for i, (rung, gap) in enumerate(gaps.items())
    )
    said = f"{'; '.join([first[0].upper() + first[1:], *others])}."
    hidden = row.contrast(HIDDEN_GAP.name, side)
    if hidden is not None:
        return " ".join([said, _hidden_sentence(hidden, gaps[HIDDEN_GAP.minus].value), *_kept(row, side, hidden)])
    if len(trunk(gaps)) > 1:
        return f"{said} The waterfall says at which step of the ladder the difference enters."
    missing = [RUNGS[rung].title for rung in (HIDDEN_GAP.minus, HIDDEN_GAP.of) if rung not in gaps]
    why = f"no task has numbers by {' or '.join(missing)}" if missing else "no task has numbers on both rungs"
    return f"{said} There is no hidden gap to report: {why}."


def _kept(row: TaskRow, side: int, hidden: Estimate) -> list[str]:
    """A sentence where the shares kept of the teacher's score say another thing than the points.

    On a hard rung a gap looks small in points. Said where the two shares' intervals lie apart and the hidden gap does not, or
    where they are the other way round.
    """
    ranked, written = (row.rungs[rung].sides[side].retention for rung in (HIDDEN_GAP.minus, HIDDEN_GAP.of))
    if ranked is None or written is None:
        return []
    bounds = (ranked.low, ranked.high, written.low, written.high)
    low, high, low_written, high_written = (math.nan if bound is None else bound for bound in bounds)
    apart = (low_written > high) - (high_written < low)
    opposed = hidden.direction * (written.value - ranked.value) < 0
    if (apart and apart != hidden.direction) or opposed:
        shares = f"{ranked.value:.1f} % by log-likelihood and {written.value:.1f} % by generation"
        return [f"In shares it is otherwise: of its teacher's score above chance it keeps {shares}."]
    return []


def kept_said(row: TaskRow, side: int) -> str:
    """`log-lik 95.4 [94.1, 96.6], gen. 70.9 [68.5, 73.3]`: percent of the teacher's score above chance; `undefined` at chance."""
    said = []
    for rung, found in row.rungs.items():
        kept = found.sides[side].retention
        if kept is None or kept.low is None:
            said.append(
                f"{RUNGS[rung].short} undefined" if kept is None else f"{RUNGS[rung].short} undefined: {kept.why}"
            )
        else:
            said.append(f"{RUNGS[rung].short} {kept.value:.1f} {interval(kept, sign=False)}")
    return ", ".join(said)


def _standing(gap_pp: float, whom: str) -> str:
    size = f"{abs(gap_pp):.1f}"
    if size == "0.0":
        return "level with its teacher"
    return f"{size} pp {'behind' if gap_pp < 0 else 'ahead of' if whom else 'ahead'} {whom}".rstrip()


def _hidden_sentence(found: Estimate, loglikelihood_gap_pp: float) -> str:
    if found.low is None or found.high is None:
        return f"The difference, {signed(found.value)} pp, has no interval: {found.why}."
    if found.bounded and found.value == 0:
        return (
            f"The two gaps agree on all {found.n} items; a hidden gap of up to {found.high:.1f} pp cannot be excluded."
        )
    bounds = interval(found)
    size, rest = f"{abs(found.value):.1f} pp", f"the hidden gap is {signed(found.value)} pp, 95 % interval {bounds}."
    if found.high < 0 and loglikelihood_gap_pp <= 0:
        return f"Log-likelihood hides {size} of the loss: {rest}"
    if found.high < 0:
        return f"Log-likelihood flatters the student by {size}: {rest}"
    if found.low > 0:
        return f"Log-likelihood understates the student by {size}: {rest}"
    return f"The difference, {signed(found.value)} pp, is not distinguishable from zero: 95 % interval {bounds}."


def notebook(said: str, rows: Sequence[TaskRow], sides: Sequence[Side]) -> str:
    """The headline (`said`) and the gaps as HTML, for notebooks. Everything from a run is escaped."""
    baseline, *students = sides
    rungs = [rung for rung in RUNGS.values() if any(rung.name in row.rungs for row in rows)]
    heads = ("task", "student", "n", *(f"{rung.title} gap" for rung in rungs), HIDDEN_GAP.title)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = []
    for row in rows:
        for side, student in enumerate(students, 1):
            gaps = [row.gap(rung.name, side) for rung in rungs] + [row.contrast(HIDDEN_GAP.name, side)]
            counts = "/".join(str(n) for n in sorted({found.n for found in gaps if found}))
            cells = (f"{signed(found.value)} {interval(found)}" if found else "not asked" for found in gaps)
            lines.append([row.title or row.task, student.label, counts, *cells])
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    why = "; ".join(baseline.manifest.suite.partial)
    partial = f"<p>Partial: {html.escape(why)}.</p>" if why else ""
    names = ", ".join(f"<b>{html.escape(student.name)}</b>" for student in students)
    title = f"<p>{names} against <b>{html.escape(baseline.name)}</b></p>"
    return f"{title}<p>{html.escape(said)}</p>{partial}<table><tr>{head}</tr>{body}</table>"
