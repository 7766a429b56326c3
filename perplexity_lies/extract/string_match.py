"""`string_match_all@1`, `string_match_part@1`: RULER's metrics. A reply is right by the references that stand in it.

    references 4821907 and 1935582, reply "They are 4821907."   ->   0.5 (all), 1 (part)

As in RULER's `eval/synthetic/constants.py`: case does not count, a reference may be part of a longer word, and `part` asks
for one reference of several. lm-eval's own `string_match_part` divides by their number and so differs. Several references
are one target in JSON.
"""

from __future__ import annotations

import json
from typing import ClassVar

from perplexity_lies.extract.base import Extractor, Found
from perplexity_lies.record.records import ItemRecord


def references(gold: str) -> list[str]:
    """The references of a target: the texts of a JSON array, else the target itself."""
    if gold.startswith("["):
        try:
            found = json.loads(gold)
        except ValueError:
            return [gold]
        if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
            return found
    return [gold]


class StringMatchAll(Extractor):
    """The share of the references that stand in the reply."""

    name: ClassVar[str] = "string_match_all"
    version: ClassVar[int] = 1
    metric: ClassVar[str] = "string_match_all"

    def find(self, record: ItemRecord) -> Found | None:
        answer = record.text.strip()
        start = len(record.text) - len(record.text.lstrip())
        return Found(answer, "the whole reply", (start, start + len(answer))) if answer else None

    def _found(self, answer: str, record: ItemRecord) -> list[bool]:
        return [text.lower() in answer.lower() for text in references(record.gold)]

    def judge(self, answer: str, record: ItemRecord) -> float:
        found = self._found(answer, record)
        return sum(found) / len(found)

    def shortest_right(self, gold: str) -> str:
        return " ".join(references(gold))


class StringMatchPart(StringMatchAll):
    """1 where a reference stands in the reply, else 0."""

    name: ClassVar[str] = "string_match_part"
    metric: ClassVar[str] = "string_match_part"

    def judge(self, answer: str, record: ItemRecord) -> float:
        return float(any(self._found(answer, record)))

    def shortest_right(self, gold: str) -> str:
        return min(references(gold), key=len)
