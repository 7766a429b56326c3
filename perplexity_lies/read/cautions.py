"""Cautions: what a reader should know before a number of a comparison is believed.

Each rule is one small generator over rows, items or manifests; none changes a number. A new rule is a function and its
name in `caution`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from perplexity_lies.read.numbers import (
    Caution,
    RungRow,
    Side,
    SideScore,
    TaskItems,
    TaskRow,
    Unpaired,
    guard_failures,
)
from perplexity_lies.rungs import CONTRASTS, LOGLIKELIHOOD, RUNGS

SATURATED_PERCENT = 99.0
"""Log-likelihood score of both checkpoints from which that rung has no room left to show a gap."""
FLOOR_PERCENT = 1.0
"""Score of both checkpoints' replies up to which a rung has no room left to show a loss."""
COVERAGE_FLOOR = 0.95
TRUNCATION_CEILING = 0.05
FALLBACK_CEILING = 0.05
FEW_ITEMS = 100


def _of_score(task: str, row: RungRow, found: SideScore, label: str) -> Iterator[Caution]:
    whose = f"the {label}'s {RUNGS[row.rung].title}"
    if row.chance is not None and found.score.low is not None and found.score.low <= 100 * row.chance:
        text = f"{whose} score, {found.score.value:.1f} %, cannot be told from guessing ({100 * row.chance:.1f} %)"
        yield Caution(kind="chance", task=task, text=text)
    if found.coverage < COVERAGE_FLOOR:
        rest = ", ".join(f"{n} {status}" for status, n in found.statuses.items() if status != "scored")
        text = f"only {100 * found.coverage:.1f} % of {whose} records hold an answer ({rest})"
        yield Caution(kind="coverage", task=task, text=text)
    if found.fallback > FALLBACK_CEILING:
        text = (
            f"{found.fallbacks} of {found.records} of {whose} records were read by a fallback rule, such as the last capital "
            "letter: the reply lacks the form that its prompt asks for, and may be credited by chance"
        )
        yield Caution(kind="fallback", task=task, text=text)
    if found.truncation > TRUNCATION_CEILING:
        text = f"{100 * found.truncation:.1f} % of the {label}'s replies hit the token budget; a larger one may help it"
        yield Caution(kind="truncation", task=task, text=text)
    if found.cut_prompts:
        text = f"{found.cut_prompts} of {found.records} of {whose} prompts did not fit its context and lost their beginning"
        yield Caution(kind="cut prompts", task=task, text=text)
    if found.bos_before_template:
        text = (
            f"{found.bos_before_template} of {found.records} of {whose} prompts begin with a BOS that the chat template "
            "does not write, as lm-eval asks them; replies are asked without it"
        )
        yield Caution(kind="beginning", task=task, text=text)
    for why, count in found.never_right.items():
        text = f"{count} of {found.records} of {whose} records can be right for no checkpoint: {why}"
        yield Caution(kind="never right", task=task, text=text)
    if found.beyond_context:
        text = f"{found.beyond_context} of {found.records} of {whose} records reach beyond its stated context"
        yield Caution(kind="beyond context", task=task, text=text)


def _of_row(row: TaskRow, labels: Sequence[str], overall: TaskRow | None) -> Iterator[Caution]:
    for found in row.rungs.values():
        yield from _of_room(row.task, found)
    for found in row.rungs.values():
        for label, score in zip(labels, found.sides, strict=True):
            yield from _of_score(row.task, found, score, label)
    counts = {found.n for found in row.rungs.values()}
    if counts and min(counts) < FEW_ITEMS:
        yield Caution(kind="few items", task=row.task, text=f"only {min(counts)} paired items")
    without = {side.gap.why for found in row.rungs.values() for side in found.sides[1:] if side.gap and side.gap.why}
    for why in sorted(without):
        yield Caution(kind="no interval", task=row.task, text=f"there is no interval: {why}")
    yield from _of_contrasts(row, overall)
    if not row.rungs:
        yield Caution(kind="unpaired", task=row.task, text="no item is paired: the task has no numbers")


def _of_room(task: str, row: RungRow) -> Iterator[Caution]:
    """A rung at its ceiling or floor cannot show a gap."""
    scores = [side.score.value for side in row.sides]
    listed = " and ".join(f"{score:.1f}" for score in scores)
    title = RUNGS[row.rung].title
    if row.rung == LOGLIKELIHOOD and min(scores) >= SATURATED_PERCENT:
        text = (
            f"{title} is saturated ({listed} %): "
            "it has no room left to show a gap, so a hidden gap is in part its ceiling"
        )
        yield Caution(kind="saturated", task=task, text=text)
    if RUNGS[row.rung].replies and max(scores) <= FLOOR_PERCENT:
        text = f"{title} is at its floor ({listed} %): no score is left to lose, so it cannot show a gap"
        yield Caution(kind="floor", task=task, text=text)


DOUBTS = ("floor", "chance", "saturated", "coverage", "truncation", "cut prompts", "fallback")
"""Kinds of caution under which a gap that looks small may only look so."""


def doubts(task: str, row: RungRow, labels: Sequence[str], student: int) -> list[Caution]:
    """The cautions on a rung of a task that keep its gap from being a pass: the baseline's and one student's."""
    both = dataclasses.replace(row, sides=(row.sides[0], row.sides[student]))
    found = [*_of_room(task, both)]
    for side in (0, student):
        found += _of_score(task, row, row.sides[side], labels[side])
    return [caution for caution in found if caution.kind in DOUBTS]


def _of_contrasts(row: TaskRow, overall: TaskRow | None) -> Iterator[Caution]:
    for contrast in CONTRASTS:
        found = row.contrast(contrast.name)
        counts = {row.rungs[rung].n for rung in (contrast.of, contrast.minus) if rung in row.rungs}
        if found and counts != {found.n}:
            text = f"the {contrast.title} rests on the {found.n} items paired on both rungs, the gaps on more"
            yield Caution(kind="unpaired", task=row.task, text=text)
        elif found is None and row.rungs:
            only = " and ".join(RUNGS[rung].title for rung in row.rungs)
            left_out = overall is not None and overall.contrast(contrast.name) is not None
            text = f"numbers by {only} only: there is a gap and no {contrast.title}"
            text += ", and it is not in the overall row" if left_out else ""
            yield Caution(kind="one-sided", task=row.task, text=text)


def _of_unpaired(unpaired: Sequence[Unpaired]) -> Iterator[Caution]:
    for left in unpaired:
        if left.what in RUNGS:
            text = f"{len(left.items)} items left out under {RUNGS[left.what].title}: {left.reason}"
            yield Caution(kind="unpaired", task=left.task, text=text)


def _of_seeds(tasks: Sequence[str]) -> Iterator[Caution]:
    for task in tasks:
        yield Caution(kind="seeds", task=task, text="teacher and student were not asked with the same seeds")


def _of_guard(sides: tuple[Side, ...]) -> Iterator[Caution]:
    for label, check, detail in guard_failures(sides):
        yield Caution(kind="guard", task="", text=f"the guard failed on the {label}, {check}: {detail}")


def _of_manifests(sides: Sequence[Side]) -> Iterator[Caution]:
    baseline = sides[0]
    for why in baseline.manifest.suite.partial:
        yield Caution(kind="partial", task="", text=f"not the whole suite: {why}")
    for side in sides:
        checkpoint = side.manifest.checkpoint
        if side is not baseline and checkpoint.weights_digest == baseline.manifest.checkpoint.weights_digest != "":
            text = f"{baseline.label} and {side.label} have the same weights"
            yield Caution(kind="same checkpoint", task="", text=text)
        if checkpoint.kind == "endpoint":
            where = f"{checkpoint.served_model} at {checkpoint.url}"
            text = f"the {side.label}'s weights are not fingerprinted: they are whatever {where} served at the time"
            yield Caution(kind="weights", task="", text=text)
        wanted = {rung for task in side.manifest.tasks for rung in task.rungs}
        for rung in [rung for rung in RUNGS if rung in wanted - set(side.manifest.rungs)]:
            text = f"the {side.label} was not asked under {RUNGS[rung].title}: its run was started with --rungs"
            yield Caution(kind="rung", task="", text=text)
    for side in sides[1:]:
        yield from _of_settings(baseline, side)


def _of_settings(baseline: Side, side: Side) -> Iterator[Caution]:
    for section in ("settings", "versions"):
        one: dict[str, object] = getattr(baseline.manifest, section)
        other: dict[str, object] = getattr(side.manifest, section)
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                text = (
                    f"{section} differ in {key}: {one.get(key)} for the {baseline.label}, "
                    f"{other.get(key)} for the {side.label}"
                )
                yield Caution(kind=section, task="", text=text)


def _of_fragile(sides: Sequence[Side], items: Sequence[TaskItems]) -> Iterator[Caution]:
    """Items that the engine's own rounding could have turned."""
    for i, side in enumerate(sides):
        fragile = sum(len(found.fragile[i]) for task in items for found in task.rungs.values())
        if fragile:
            text = f"fragile answers of the {side.label}, which its own rounding could change: {fragile}"
            yield Caution(kind="fragile", task="", text=text)


def caution(
    sides: tuple[Side, ...],
    rows: Sequence[TaskRow],
    overall: TaskRow | None,
    items: Sequence[TaskItems],
    unpaired: Sequence[Unpaired],
    seeds: Sequence[str],
) -> list[Caution]:
    """All cautions: those of the whole comparison first, then task by task. `seeds`: tasks whose seeds differ by side."""
    found = [*_of_guard(sides), *_of_manifests(sides), *_of_seeds(seeds), *_of_fragile(sides, items)]
    for row in rows:
        left = [left for left in unpaired if left.task == row.task]
        found += [*_of_row(row, [side.label for side in sides], overall), *_of_unpaired(left)]
    for contrast in CONTRASTS:
        whole = overall.contrast(contrast.name) if overall else None
        if whole and whole.low is None:
            text = f"the overall row has no interval, since a task has none: {whole.why}"
            found.append(Caution(kind="no interval", task="", text=text))
    return found
