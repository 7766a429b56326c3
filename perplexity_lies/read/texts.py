"""Prompts and replies of a comparison, read from its run directories when they are wanted.

`comparison.json` holds none of them; it says where the runs lie, and what their records hashed to when they were compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

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
