"""What the gate holds a student to: rules, as a YAML file has them.

rules:
  - {what: generation, of: overall, margin: 3}          # the mean over tasks loses less than 3 points
  - {what: generation, of: tasks, margin: 5, require: no regress}
  - {what: hidden gap, of: [gsm8k, math], margin: 4}    # a group: the mean of these tasks
  - {what: truncation, of: tasks, margin: 10}           # at most 10 points more replies cut than the teacher's
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le, Len

from perplexity_lies.checked import Checked, checked
from perplexity_lies.errors import UsageError, nearest
from perplexity_lies.files import read_yaml
from perplexity_lies.read.numbers import SHORT, STATUS_CODES
from perplexity_lies.record.records import Status
from perplexity_lies.rungs import CONTRASTS, GENERATION, RUNGS

_CUT = (STATUS_CODES[Status.TRUNCATED], SHORT)

SHARES: dict[str, Callable[[str], bool]] = {
    "truncation": lambda letter: letter not in _CUT,
    "coverage": lambda letter: letter in (STATUS_CODES[Status.SCORED], SHORT),
    "degenerate": lambda letter: letter != STATUS_CODES[Status.DEGENERATE],
}
"""Share of replies that a rule may be about -> whether a reply with this letter (`STATUS_CODES`, `SHORT`) is in order."""

PASSES, NOT_WORSE = "pass", "no regress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Checked):
    """One thing that a student must not lose more of than `margin`."""

    what: str
    """A rung (its gap), a contrast such as `hidden gap`, or a share of replies in order (`SHARES`)."""
    of: Literal["overall", "tasks"] | Annotated[tuple[str, ...], Len(1)] = "overall"
    """The mean over tasks, every task by itself, or the mean of a group of tasks."""
    margin: Annotated[float, Gt(0), Le(100)]
    """Largest loss allowed, in percentage points."""
    require: Literal["pass", "no regress"] = "pass"
    """`pass`: surely within the margin. `no regress`: not surely beyond it."""

    def __post_init__(self) -> None:
        known = [*RUNGS, *(contrast.name for contrast in CONTRASTS), *SHARES]
        if self.what not in known:
            raise UsageError(
                f"a rule cannot be about {self.what!r}{nearest(self.what, known)}",
                found=f"known: {', '.join(known)}",
                mend=f"what: {GENERATION}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Checked):
    """All rules of a gate; a student passes where it passes each."""

    rules: Annotated[tuple[Rule, ...], Len(1)]
    title: str = field(default="")


def load_policy(path: Path) -> Policy:
    """Read a policy file. Raises UsageError with the place of what is wrong."""
    return checked(Policy, read_yaml(path, f"policy {path}"), f"policy {path.name}")


def policy_of(margin_pp: float | None, path: Path | None) -> Policy:
    """The policy of `--margin` or of `--policy`. Raises UsageError unless exactly one is given."""
    if margin_pp is not None and path is None:
        return one_margin(margin_pp)
    if path is not None and margin_pp is None:
        return load_policy(path)
    found = "neither" if path is None else "both"
    raise UsageError("the gate needs --margin or --policy", found=found, mend="--margin 3")


def one_margin(margin_pp: float, rung: str = GENERATION) -> Policy:
    """The overall gap on a rung must pass the margin, and no task may regress beyond it. Raises UsageError outside (0, 100]."""
    if not 0 < margin_pp <= 100:
        raise UsageError(
            f"a margin of {margin_pp:g} pp cannot be judged", found="it must lie in (0, 100]", mend="--margin 3"
        )
    return Policy(
        rules=(
            Rule(what=rung, of="tasks", margin=margin_pp, require="no regress"),
            Rule(what=rung, of="overall", margin=margin_pp),
        )
    )
