"""`Comparison`: what runs say of a baseline and its students, as numbers, identities and pointers; and its JSON.

    comparison = load_comparison("plies-out/.../comparison.json")
    comparison.gaps        # data frame: scores, gaps and hidden gaps by task, rung and student
    comparison.items       # data frame: every item with its scores and statuses
    comparison.replies     # data frame: every record with prompt, reply and answer, read from the run directories

`comparison.json` holds numbers and pointers only: prompts and replies stay in the run directories. Its bytes depend on
records, manifests and where the runs lie beside it: keys sorted, floats rounded, no timings, no absolute paths.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perplexity_lies.checked import Checked, checked
from perplexity_lies.errors import UsageError
from perplexity_lies.files import read_json, write_whole
from perplexity_lies.read.causes import Causes
from perplexity_lies.read.frames import gap_lines, item_lines, pandas_frame, reply_lines
from perplexity_lies.read.numbers import (
    Caution,
    GuardFailure,
    Intervals,
    Side,
    TaskItems,
    TaskRow,
    Unpaired,
    guard_failures,
)
from perplexity_lies.read.stats.estimate import DECIMALS
from perplexity_lies.read.waterfall import Waterfall
from perplexity_lies.read.wording import headline, notebook

if TYPE_CHECKING:
    import pandas

COMPARISON_FORMAT = 3
"""Format 2 had bootstrap intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Checked):
    """A baseline and its students. Made by `compare.compare_runs`, or read by `load_comparison`."""

    format: Literal[3] = 3
    sides: tuple[Side, ...]
    """The baseline first; two or more."""
    tasks: tuple[TaskRow, ...]
    overall: TaskRow | None
    """Unweighted mean over tasks (which ones: `rows.overall_tasks`); None where no task has a number."""
    items_of: tuple[TaskItems, ...]
    unpaired: tuple[Unpaired, ...]
    cautions: tuple[Caution, ...]
    intervals: Intervals
    waterfalls: tuple[Waterfall, ...] = ()
    """On the ladder: the steps that the hidden gap is made of, by student and task."""
    causes: tuple[Causes, ...] = ()
    """Why items are lost and gained where a reply is written, by student and task."""

    @property
    def baseline(self) -> Side:
        """The teacher."""
        return self.sides[0]

    @property
    def students(self) -> tuple[Side, ...]:
        """The other sides."""
        return self.sides[1:]

    @property
    def suite_name(self) -> str:
        """The suite of all runs."""
        return self.baseline.manifest.suite.name

    @property
    def limit(self) -> int | None:
        """Items per task that were wanted; None for all."""
        return self.baseline.manifest.suite.limit

    @property
    def partial(self) -> bool:
        """Whether this is not the whole suite: a limit, a choice of tasks, fewer seeds."""
        return bool(self.partial_why)

    @property
    def partial_why(self) -> str:
        """In words, what of the suite was not asked; empty for the whole."""
        return "; ".join(self.baseline.manifest.suite.partial)

    @property
    def guard_failures(self) -> tuple[GuardFailure, ...]:
        """What the artifact guard found wrong; while there is any, the gaps are not a finding."""
        return guard_failures(self.sides)

    @property
    def rows(self) -> tuple[TaskRow, ...]:
        """The tasks, then the overall row where there is one."""
        return self.tasks + ((self.overall,) if self.overall else ())

    @property
    def gaps(self) -> pandas.DataFrame:
        """One row per task (then overall), rung and student; scores in percent, gaps in percentage points."""
        return pandas_frame(gap_lines(self.rows, self.students))

    @property
    def items(self) -> pandas.DataFrame:
        """One row per item, with score and status of every side on every rung."""
        return pandas_frame(item_lines(self.items_of, self.sides))

    @property
    def replies(self) -> pandas.DataFrame:
        """One row per record, with prompt, reply and answer, read from the run directories.

        Raises MissingError where a run directory is no longer there.
        """
        return pandas_frame(reply_lines(self.sides))

    def headline(self) -> str:
        """What log-likelihood does or does not hide, in sentences that say no more than the intervals do."""
        return headline(self.overall, self.students, self.guard_failures)

    def _repr_html_(self) -> str:
        return notebook(self.headline(), self.rows, self.sides)

    def to_json(self, folder: Path | None = None) -> str:
        """Canonical text: equal comparisons give equal bytes. Run directories stand relative to `folder`, or by name."""
        plain = rounded(dataclasses.asdict(self))
        for side in plain["sides"]:
            side["run"] = os.path.relpath(side["run"], folder) if folder is not None else Path(side["run"]).name
        return json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write `to_json` to `path`, making its directory."""
        path = Path(path)
        return write_whole(path, self.to_json(path.parent))


def rounded(value: Any) -> Any:
    """JSON content with every float at `DECIMALS`."""
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0  # + 0.0 makes -0.0 and 0.0 one
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return value


def load_comparison(path: str | Path) -> Comparison:
    """Read a `comparison.json`. Raises UsageError where it cannot be used, saying what is wrong with it."""
    path = Path(path)
    wanted, mend = (
        f"cannot use {str(path)!r} as a comparison",
        "plies compare TEACHER STUDENT (it writes comparison.json)",
    )
    raw = read_json(path, wanted, mend)
    if not isinstance(raw, dict) or "format" not in raw:
        raise UsageError(wanted, found="JSON, but not a comparison (no 'format')", mend=mend)
    if raw["format"] != COMPARISON_FORMAT:
        raise UsageError(
            wanted,
            found=f"format {str(raw['format'])[:20]}; this version of plies reads format {COMPARISON_FORMAT}",
            mend="the compare or evaluate command that made it, again: what its runs hold is computed anew",
        )
    found = checked(Comparison, raw, wanted, mend)
    if len(found.sides) < 2 or any(
        len(row.sides) != len(found.sides) for task in found.rows for row in task.rungs.values()
    ):
        raise UsageError(wanted, found="its rows do not have one place for each side", mend=mend)
    sides = tuple(dataclasses.replace(side, run=os.path.normpath(path.parent / side.run)) for side in found.sides)
    return dataclasses.replace(found, sides=sides)
