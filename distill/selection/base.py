"""What every selector gets and gives, and the table of selectors.

    find_selector("greedy_kl")(candidates)  ->  Selection(kept=(2,), by="KL to the teacher ...", scored=(...))

A new selector is one file beside this one and one row in `SELECTORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perplexity_lies.checked import Checked
from perplexity_lies.errors import UsageError, from_table, nearest

GREEDY_KL = "greedy_kl"
SELECTORS = {
    GREEDY_KL: "distill.selection.greedy:select",
}
"""A recipe's `student.selector` -> `module:function`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The layers to choose from, and what a selector can learn about a set of them.

    A selector that needs more (losses by layer, the hybrid itself, a score by generation) gets it as one more field here.
    """

    layers: int
    """Layers of the teacher, numbered from 0."""
    keep: int
    """How many keep attention."""
    kl_of: Callable[[tuple[int, ...]], float]
    """KL(teacher || student), nats per completion token, with the teacher's attention put back in these layers (ascending)."""


@dataclass(frozen=True, slots=True)
class ScoredSet(Checked):
    """One set of layers that a selector looked at."""

    layers: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection(Checked):
    """The chosen layers and every set that was scored on the way."""

    kept: tuple[int, ...]
    """Ascending."""
    by: str = ""
    """What the scores are, with their unit; empty where the recipe names the layers."""
    scored: tuple[ScoredSet, ...] = ()


Selector = Callable[[Candidates], Selection]


def find_selector(name: str) -> Selector:
    """The selector of that name. Raises UsageError, with the nearest name, when there is none."""
    if name not in SELECTORS:
        raise UsageError(
            f"student.selector: unknown name {name!r}{nearest(name, SELECTORS)}",
            found=f"known: {', '.join(SELECTORS)}",
            mend=f"--set student.selector={GREEDY_KL}",
        )
    selector: Selector = from_table(SELECTORS[name], f"selector {name!r} cannot run", "torch")
    return selector
