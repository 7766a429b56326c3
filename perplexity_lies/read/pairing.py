"""Records of a baseline and its students, paired by item.

Records pair when task, item, rung, metric, prompt hash and reference agree on all sides and every checkpoint could be
measured. `errored` and `refused` records are no measurement and never pair; `unparsed`, `truncated` and `degenerate` ones
are replies, and count with the score that the extractor gave them. What does not pair is listed with its reason.

Texts are dropped as the records stream by, so that memory grows with the number of records, not with their length.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from perplexity_lies.digests import sha256_text
from perplexity_lies.errors import UsageError
from perplexity_lies.read.numbers import Unpaired
from perplexity_lies.read.stats.moments import Floats
from perplexity_lies.record.records import FALLBACK, ItemRecord, Reading, Status
from perplexity_lies.record.store import Run
from perplexity_lies.rungs import RUNGS, Contrast

LIBRARY_VERSION = re.compile(r"@\d+\.[\w.]+$")
"""The version in `evalscope@1.14.1`: sides may differ in it, and a caution says so. Our own extractors have one number."""


@dataclass(frozen=True, slots=True)
class Read:
    """A reading without its texts."""

    status: Status
    score: float
    metric: str
    by_fallback: bool
    """Whether the answer was not given in the form that was asked for."""


def read_of(reading: Reading) -> Read:
    """What a comparison keeps of a reading."""
    by_fallback = bool(reading.answer) and reading.rule.startswith(FALLBACK)
    return Read(reading.status, reading.score, reading.metric, by_fallback)


@dataclass(frozen=True, slots=True)
class Seen:
    """A record without its texts."""

    seed: int
    subject: str
    prompt_sha256: str
    gold: str
    """Hash of the reference."""
    measured: bool
    reply_cut: bool
    cut_tokens: int
    """Cut from the left of its prompt."""
    beyond_context: bool
    fragile: bool
    bos_before_template: bool
    never_right: str
    headline: Read
    readings: dict[str, Read]
    """Extractor -> its reading, the headline first."""


def mean_score(records: Sequence[Seen]) -> float:
    """Over an item's seeds; most items have one."""
    return fmean(seen.headline.score for seen in records) if len(records) > 1 else records[0].headline.score


Records = dict[tuple[str, str], dict[str, list[Seen]]]
"""(task, rung) -> item -> records by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One task on one rung: the items that pair, in sorted order."""

    items: tuple[str, ...]
    subjects: tuple[str, ...]
    scores: Floats
    """[n, sides], in [0, 1], mean over seeds."""


def scan(run: Run) -> Records:
    """All records of a run, without their texts. Raises UsageError where two records of one item have the same seed."""
    grouped: defaultdict[tuple[str, str], defaultdict[str, list[Seen]]] = defaultdict(lambda: defaultdict(list))
    for record in run.records():
        grouped[record.task, record.rung][record.item].append(_seen(record))
    for (task, rung), items in grouped.items():
        for item, records in items.items():
            records.sort(key=lambda seen: seen.seed)
            if len({seen.seed for seen in records}) < len(records):
                raise UsageError(
                    f"the run {str(run.path)!r} cannot be read",
                    found=f"two records for task {task!r}, item {item!r}, {rung}, same seed",
                    mend="delete the run directory and evaluate again",
                )
    return {key: dict(items) for key, items in grouped.items()}


def _seen(record: ItemRecord) -> Seen:
    readings = {reading.extractor: read_of(reading) for reading in record.readings}
    return Seen(
        seed=record.seed,
        subject=record.subject,
        prompt_sha256=record.prompt_sha256,
        gold=sha256_text(f"{record.gold_index}\n{record.gold}"),
        measured=record.measured,
        reply_cut=record.finish_reason == "length",
        cut_tokens=record.truncated_prompt_tokens,
        beyond_context=record.beyond_context_tokens > 0,
        fragile=record.fragile,
        bos_before_template=record.bos_before_template,
        never_right=record.never_right,
        headline=readings[record.headline.extractor],
        readings=readings,
    )


def _why_unpaired(found: Sequence[list[Seen]], labels: Sequence[str]) -> str:
    """Empty where all sides pair."""
    there = [label for label, records in zip(labels, found, strict=True) if records]
    if len(there) < len(labels):
        return f"only in the {' and the '.join(there)}'s run"
    every = [seen for records in found for seen in records]
    for what, differs in (
        ("prompt", {seen.prompt_sha256 for seen in every}),
        ("metric", {seen.headline.metric for seen in every}),
        ("extractor", {LIBRARY_VERSION.sub("", next(iter(seen.readings))) for seen in every}),
        ("reference answer", {seen.gold for seen in every}),
    ):
        if len(differs) > 1:
            return f"{what} differs"
    for label, records in zip(labels, found, strict=True):
        for seen in records:
            if not seen.measured:
                return f"{label}'s record is {seen.headline.status}"
    return ""


def pair(task: str, rung: str, sides: Sequence[Records], labels: Sequence[str]) -> tuple[Paired, list[Unpaired]]:
    """The items of a task that pair on a rung, and those that do not, with the reason."""
    found = [records.get((task, rung), {}) for records in sides]
    left: defaultdict[str, list[str]] = defaultdict(list)
    items: list[str] = []
    for item in sorted(set().union(*found)):
        why = _why_unpaired([records.get(item, []) for records in found], labels)
        (left[why] if why else items).append(item)
    scores = [[mean_score(records[item]) for records in found] for item in items]
    paired = Paired(
        items=tuple(items),
        subjects=tuple(found[0][item][0].subject for item in items),
        scores=np.array(scores, dtype=np.float64).reshape(-1, len(sides)),
    )
    return paired, [Unpaired(task=task, what=rung, reason=why, items=tuple(left[why])) for why in sorted(left)]


def read_by(paired: Paired, extractor: str, records: Sequence[dict[str, list[Seen]]]) -> Paired:
    """The same items scored by another extractor; those that it did not read on every side are left out."""
    kept = [
        i
        for i, item in enumerate(paired.items)
        if all(extractor in seen.readings for side in records for seen in side[item])
    ]
    items = tuple(paired.items[i] for i in kept)
    scores = [[fmean(seen.readings[extractor].score for seen in side[item]) for side in records] for item in items]
    return Paired(
        items=items,
        subjects=tuple(paired.subjects[i] for i in kept),
        scores=np.array(scores, dtype=np.float64).reshape(-1, len(records)),
    )


def both(contrast: Contrast, pairs: dict[str, Paired]) -> tuple[Paired, list[tuple[str, tuple[str, ...]]]]:
    """Items paired on both rungs of a contrast, scores [n, 2 * sides] (subtracted rung first); and those on one, by reason."""
    first, second = pairs[contrast.minus], pairs[contrast.of]
    common = set(first.items) & set(second.items)
    rows = [[i for i, item in enumerate(paired.items) if item in common] for paired in (first, second)]
    left = [
        (f"paired by {RUNGS[name].title} only", tuple(sorted(set(pairs[name].items) - common)))
        for name in (contrast.minus, contrast.of)
    ]
    paired = Paired(
        items=tuple(first.items[i] for i in rows[0]),
        subjects=tuple(first.subjects[i] for i in rows[0]),
        scores=np.hstack([first.scores[rows[0]], second.scores[rows[1]]]),
    )
    return paired, [(reason, items) for reason, items in left if items]
