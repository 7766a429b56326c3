"""Cautions: what a reader should know before a number of a comparison is believed.

Each rule is one small generator over rows, items or manifests; none changes a number. Knows nothing of how the numbers
were estimated or of how a caution is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from perplexity_lies.read.comparison import (
    SIDES,
    Caution,
    PairedItem,
    ProtocolRow,
    Side,
    TaskRow,
    Unpaired,
    guard_failures,
)
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD, PROTOCOLS

SATURATED_PERCENT = 99.0
"""Log-likelihood score of both checkpoints from which that protocol has no room left to show a gap."""
FLOOR_PERCENT = 1.0
"""Generation score of both checkpoints up to which that protocol has no room left to show a loss."""
COVERAGE_FLOOR = 0.95
TRUNCATION_CEILING = 0.05
FEW_ITEMS = 100
FEW_CLUSTERS = 10
"""Below about this many a cluster bootstrap is too narrow (Cameron, Gelbach & Miller 2008, Rev. Econ. Stat. 90:414)."""
SPOKEN = {LOGLIKELIHOOD: "log-likelihood", GENERATION: "generation"}


def _of_score(task: str, found: ProtocolRow, side_name: str) -> Iterator[Caution]:
    side: Side = getattr(found, side_name)
    spoken = SPOKEN[found.protocol]
    whose = f"the {side_name}'s {spoken}"
    if found.chance is not None and side.score.low is not None and side.score.low <= 100 * found.chance:
        text = f"{whose} score, {side.score.value:.1f} %, cannot be told from guessing ({100 * found.chance:.1f} %)"
        yield Caution(kind="chance", task=task, text=text)
    if side.coverage < COVERAGE_FLOOR:
        rest = ", ".join(f"{n} {status}" for status, n in side.statuses.items() if status != "scored")
        text = f"only {100 * side.coverage:.1f} % of {whose} records hold an answer ({rest})"
        yield Caution(kind="coverage", task=task, text=text)
    if side.truncation > TRUNCATION_CEILING:
        text = (
            f"{100 * side.truncation:.1f} % of the {side_name}'s replies hit the token budget; a larger one may help it"
        )
        yield Caution(kind="truncation", task=task, text=text)


def _of_row(row: TaskRow) -> Iterator[Caution]:
    ranked, generated = row.loglikelihood, row.generation
    if ranked and min(ranked.teacher.score.value, ranked.student.score.value) >= SATURATED_PERCENT:
        text = (
            f"log-likelihood is saturated ({ranked.teacher.score.value:.1f} and {ranked.student.score.value:.1f} %): "
            "it has no room left to show a gap, so a hidden gap is in part its ceiling"
        )
        yield Caution(kind="saturated", task=row.task, text=text)
    if generated and max(generated.teacher.score.value, generated.student.score.value) <= FLOOR_PERCENT:
        scores = f"{generated.teacher.score.value:.1f} and {generated.student.score.value:.1f} %"
        text = f"generation is at its floor ({scores}): no score is left to lose, so it cannot show a gap"
        yield Caution(kind="floor", task=row.task, text=text)
    for found in (ranked, generated):
        if found is None:
            continue
        for side_name in SIDES:
            yield from _of_score(row.task, found, side_name)
    counts = {found.gap.n for found in (ranked, generated) if found}
    if counts and min(counts) < FEW_ITEMS:
        yield Caution(kind="few items", task=row.task, text=f"only {min(counts)} paired items")
    if 1 < row.subjects < FEW_CLUSTERS:
        text = f"clustered by only {row.subjects} subjects: the intervals are likely too narrow"
        yield Caution(kind="few clusters", task=row.task, text=text)
    if row.hidden_gap and counts != {row.hidden_gap.n}:
        text = f"the hidden gap rests on the {row.hidden_gap.n} items paired under both protocols, the gaps on more"
        yield Caution(kind="unpaired", task=row.task, text=text)
    if (ranked is None) != (generated is None):
        text = f"paired by {SPOKEN[GENERATION if generated else LOGLIKELIHOOD]} only: left out of the overall numbers"
        yield Caution(kind="unpaired", task=row.task, text=text)
    if ranked is None and generated is None:
        yield Caution(kind="unpaired", task=row.task, text="no item is paired: the task has no numbers")


def _of_unpaired(unpaired: Sequence[Unpaired]) -> Iterator[Caution]:
    for left in unpaired:
        if left.what in PROTOCOLS:
            text = f"{len(left.items)} items left out under {SPOKEN[left.what]}: {left.reason}"
            yield Caution(kind="unpaired", task=left.task, text=text)


def _of_seeds(items: Sequence[PairedItem]) -> Iterator[Caution]:
    differing = dict.fromkeys(
        item.task
        for item in items
        for asked in (item.loglikelihood, item.generation)
        if asked and asked.paired and asked.teacher and asked.student
        if [reply.seed for reply in asked.teacher.replies] != [reply.seed for reply in asked.student.replies]
    )
    for task in differing:
        yield Caution(kind="seeds", task=task, text="teacher and student were not asked with the same seeds")


def _of_guard(provenance: dict[str, Any]) -> Iterator[Caution]:
    for side, check, detail in guard_failures(provenance):
        yield Caution(kind="guard", task="", text=f"the guard failed on the {side}, {check}: {detail}")


def _of_manifests(provenance: dict[str, Any]) -> Iterator[Caution]:
    teacher, student = (provenance[side] for side in SIDES)
    limit = teacher["suite"].get("limit")
    if limit is not None:
        yield Caution(kind="partial", task="", text=f"a limit was set: at most {limit} items per task were asked")
    digests = {manifest["checkpoint"].get("weights_digest") for manifest in (teacher, student)}
    if len(digests) == 1 and all(digests):
        yield Caution(kind="same checkpoint", task="", text="teacher and student have the same weights")
    for side, manifest in zip(SIDES, (teacher, student), strict=True):
        if manifest["checkpoint"].get("kind") == "endpoint":
            where = f"{manifest['checkpoint'].get('served_model')} at {manifest['checkpoint'].get('url')}"
            text = f"the {side}'s weights are not fingerprinted: they are whatever {where} served at the time"
            yield Caution(kind="weights", task="", text=text)
        for protocol in sorted(set(PROTOCOLS) - set(manifest.get("protocols", PROTOCOLS))):
            text = f"the {side} was not asked under {SPOKEN[protocol]}: its run was started with --protocol"
            yield Caution(kind="protocol", task="", text=text)
    for section in ("settings", "versions"):
        one, other = teacher.get(section, {}), student.get(section, {})
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                text = f"{section} differ in {key}: {one.get(key)} for the teacher, {other.get(key)} for the student"
                yield Caution(kind=section, task="", text=text)


def _of_fragile(items: Sequence[PairedItem]) -> Iterator[Caution]:
    """Items that the engine's own rounding could have turned."""
    for side in SIDES:
        cells = [
            getattr(asked, side)
            for item in items
            for asked in (item.loglikelihood, item.generation)
            if asked is not None
        ]
        fragile = sum(any(reply.fragile for reply in cell.replies) for cell in cells if cell is not None)
        if fragile:
            text = f"fragile answers of the {side}, which its own rounding could change: {fragile}"
            yield Caution(kind="fragile", task="", text=text)


def caution(
    rows: Sequence[TaskRow],
    overall: TaskRow | None,
    items: Sequence[PairedItem],
    unpaired: Sequence[Unpaired],
    provenance: dict[str, Any],
) -> list[Caution]:
    """All cautions: those of the whole comparison first, then task by task."""
    found = [*_of_guard(provenance), *_of_manifests(provenance), *_of_seeds(items), *_of_fragile(items)]
    for row in rows:
        found += [*_of_row(row), *_of_unpaired([left for left in unpaired if left.task == row.task])]
    if overall and overall.hidden_gap and overall.hidden_gap.low is None:
        found.append(
            Caution(kind="few items", task="", text="a task of a single unit leaves the overall row no interval")
        )
    return found
