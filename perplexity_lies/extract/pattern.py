"""`pattern@1`: the group of the last match of a regular expression, exact to the letter. The headline of `items:` tasks.

    pattern=answer : (\\d+)   reads   "3 + 4 ; answer : 7"   as   "7"

Without an argument it is the suite's own `extract`. Case counts: evalscope's own exact match would not see it, and two
answers may differ in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from perplexity_lies.errors import UsageError
from perplexity_lies.extract.base import Extractor, Found
from perplexity_lies.record.records import ItemRecord

PATTERN_EXAMPLE = r"'answer : (\d+)'"


class Pattern(Extractor):
    """A regular expression with one group."""

    name: ClassVar[str] = "pattern"
    version: ClassVar[int] = 1

    def __init__(self, argument: str, settings: Mapping[str, Any]) -> None:
        own = str(settings.get("extract", ""))
        self._other = argument if argument != own else ""
        pattern = argument or own
        if not pattern:
            raise UsageError(
                "`pattern` needs a regular expression",
                found="the suite has no `extract`",
                mend=f"pattern={PATTERN_EXAMPLE}",
            )
        try:
            self.regex = re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"{pattern!r} is not a regular expression", found=str(error), mend=f"extract: {PATTERN_EXAMPLE}"
            ) from error
        if self.regex.groups != 1:
            raise UsageError(
                f"{pattern!r} needs one group: what stands in it is the answer",
                found=f"{self.regex.groups} groups",
                mend=f"extract: {PATTERN_EXAMPLE}",
            )

    @property
    def label(self) -> str:
        """With the expression where it is not the suite's own."""
        return super().label + (f"={self._other}" if self._other else "")

    def find(self, record: ItemRecord) -> Found | None:
        return self.search(record.text)

    def search(self, text: str) -> Found | None:
        """The group of the last match, without spaces around it; None where that is empty."""
        matches = list(self.regex.finditer(text))
        group = (matches[-1].group(1) or "") if matches else ""
        answer = group.strip()
        if not answer:
            return None
        start = matches[-1].start(1) + len(group) - len(group.lstrip())
        return Found(answer, "last match", (start, start + len(answer)))
