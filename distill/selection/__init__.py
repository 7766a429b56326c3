"""Which layers keep attention: one selector a file, reached by name through `SELECTORS`.

A selector is a function of a `Candidates` (what it may ask) that returns a `Selection`.
"""

from distill.selection.base import SELECTORS, Candidates, ScoredSet, Selection, Selector, find_selector

__all__ = ["SELECTORS", "Candidates", "ScoredSet", "Selection", "Selector", "find_selector"]
