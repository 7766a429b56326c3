"""Reads a run's stored replies again with another extractor, without asking anything again.

    reread("plies-out/runs/miniature-student-3f1a5c9e0b7d", "strict")
    reread(RUN, r"pattern=answer : (\\d+)", headline=True)

The new reading stands beside the others in each record; as the headline its score enters the gaps of the next comparison.
Needs no engine, no torch and no evaluation library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from perplexity_lies.errors import UsageError
from perplexity_lies.extract import open_extractor
from perplexity_lies.extract.base import Extractor
from perplexity_lies.record.records import ItemRecord, Reading, Status
from perplexity_lies.record.store import Run, reopen_run
from perplexity_lies.rungs import RUNGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """What reading a task's replies again came to."""

    task: str
    rung: str
    extractor: str
    """Name and version of the new reading."""
    records: int
    measured: int
    """Records with a reply; the others keep their status, and enter no score here."""
    found: int
    """Replies in which the extractor found an answer."""
    before: float
    """Mean score of the headline as it was, over the measured records; 0.0 where there are none."""
    after: float
    """Mean score of the new reading, over the same records."""

    def __str__(self) -> str:
        return (
            f"{self.task}, {RUNGS[self.rung].title}: {self.extractor} finds an answer in {self.found} of {self.measured} "
            f"replies; mean score {100 * self.before:.1f} -> {100 * self.after:.1f} %"
        )


def reread(run_path: Path | str, extractor: str, *, headline: bool = False) -> list[Reread]:
    """Give every record of a replying rung the reading of `extractor`, NAME or NAME=ARGUMENT; one result a task and rung.

    A reading of the same name and version is replaced. `headline` puts the new one first. Nothing is written when an
    error is raised. Raises UsageError for an extractor that is not there or cannot be used, for a run without replies, and for
    one that another process is writing.
    """
    with contextlib.closing(reopen_run(run_path)) as run:
        return _reread(run, extractor, headline)


def _reread(run: Run, extractor: str, headline: bool) -> list[Reread]:
    groups: dict[tuple[str, str], list[ItemRecord]] = {}
    for record in run.records():
        if RUNGS[record.rung].replies:
            groups.setdefault((record.rung, record.task), []).append(record)
    if not groups:
        raise UsageError(
            f"run {run.path} holds no replies to read",
            found="records of rungs that rank, or none",
            mend="plies evaluate CHECKPOINT --suite NAME writes them",
        )
    readers: dict[tuple[str, str], Extractor] = {}
    for rung, task in groups:
        facts = run.manifest.task(task).rungs.get(rung)
        readers[rung, task] = open_extractor(extractor, facts.settings if facts is not None else {})
    results, read = [], {}
    for place, records in groups.items():
        readings = [readers[place].read(record) for record in records]
        results.append(_result(place, records, readings))
        read[place] = [_with(record, new, headline) for record, new in zip(records, readings, strict=True)]
    for rung in dict.fromkeys(rung for rung, _ in groups):
        run.write_records(rung, [record for (of, _), records in read.items() if of == rung for record in records])
    return results


def _with(record: ItemRecord, new: Reading, headline: bool) -> ItemRecord:
    """The record with a reading more, or with another one in the place of an equal name."""
    names = [reading.extractor for reading in record.readings]
    others = [reading for reading in record.readings if reading.extractor != new.extractor]
    at = 0 if headline else names.index(new.extractor) if new.extractor in names else len(others)
    return replace(record, readings=(*others[:at], new, *others[at:]))


def _result(place: tuple[str, str], records: Sequence[ItemRecord], readings: Sequence[Reading]) -> Reread:
    pairs = [(record, new) for record, new in zip(records, readings, strict=True) if record.measured]
    return Reread(
        rung=place[0],
        task=place[1],
        extractor=readings[0].extractor,
        records=len(records),
        measured=len(pairs),
        found=sum(new.status is Status.SCORED for _, new in pairs),
        before=fmean(record.score for record, _ in pairs) if pairs else 0.0,
        after=fmean(new.score for _, new in pairs) if pairs else 0.0,
    )
