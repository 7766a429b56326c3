"""Prompts and replies of a comparison, read from its run directories when they are wanted.

`comparison.json` holds none of them; it says where the runs lie, and what their records hashed to when they were compared.

    records_of(sides)         every record, one at a time
    glances(run)              where each record stands, and what was read in it: enough to choose some, then
    record_at(glance)         the record itself
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perplexity_lies.checked import adapter
from perplexity_lies.errors import MissingError, PliesError
from perplexity_lies.read.numbers import Side
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.record.store import Run, open_run


def why_no_texts(side: Side) -> str:
    """Why a side's records cannot be shown beside its numbers; empty where they can.

    They cannot where the run directory is gone, or holds other records than those that were compared.
    """
    try:
        run = open_run(Path(side.run))
    except PliesError as error:
        return f"{error.asked} ({'; '.join(error.found)})"
    if run.records_digest() != side.records_digest:
        return f"the records in {side.run} have changed since they were compared"
    return ""


def open_side(side: Side) -> Run:
    """A side's run directory. Raises MissingError where it is not there or has changed, with the command to type."""
    why = why_no_texts(side)
    if why:
        raise MissingError(
            f"the texts of {side.name} are not here",
            found=why,
            mend="plies report RUN_OF_TEACHER RUN_OF_STUDENT compares anew",
        )
    return open_run(Path(side.run))


def records_of(sides: Sequence[Side]) -> Iterator[tuple[Side, ItemRecord]]:
    """Every record of every side, side by side. Raises as `open_side`."""
    for side in sides:
        for record in open_side(side).records():
            yield side, record


@dataclass(frozen=True, slots=True)
class _Answer:
    answer: str = ""


@dataclass(frozen=True, slots=True)
class _Head:
    """What of a record is looked at; pydantic passes over the rest of the line, three times as fast as it reads it."""

    task: str
    item: str
    rung: str
    readings: tuple[_Answer, ...]


@dataclass(frozen=True, slots=True)
class Glance:
    """A record's identity, its headline's answer, and where it stands."""

    task: str
    item: str
    rung: str
    answer: str
    file: Path
    offset: int
    """Bytes before its line."""


def glances(run: Run) -> Iterator[Glance]:
    """Every record of a run that holds what was compared (`open_side`)."""
    head = adapter(_Head)
    for path in run.record_files():
        offset = 0
        with path.open("rb") as lines:
            for line in lines:
                found = head.validate_json(line)
                yield Glance(found.task, found.item, found.rung, found.readings[0].answer, path, offset)
                offset += len(line)


def record_at(glance: Glance) -> ItemRecord:
    """The record that a glance was taken of."""
    with glance.file.open("rb") as lines:
        lines.seek(glance.offset)
        return ItemRecord.from_json(lines.readline())
