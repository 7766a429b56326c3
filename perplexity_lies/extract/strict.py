"""`strict@1`: the whole reply, without spaces around it, is the answer, to the letter.

Where there are choices, a reply that is neither the text of a choice nor the reference is no answer. A letter counts where
the reference is a letter, which is how evalscope's multiple-choice benchmarks have it.
"""

from __future__ import annotations

from typing import ClassVar

from perplexity_lies.extract.base import Extractor, Found, letter
from perplexity_lies.record.records import ItemRecord


class Strict(Extractor):
    """Pays nothing for an answer among other words."""

    name: ClassVar[str] = "strict"
    version: ClassVar[int] = 1

    def find(self, record: ItemRecord) -> Found | None:
        reply = record.text.strip()
        letters = [letter(index) for index in range(len(record.choices))]
        if not reply:
            return None
        start = len(record.text) - len(record.text.lstrip())
        span = (start, start + len(reply))
        if record.gold in letters and reply in letters:
            return Found(reply, "the whole reply is a letter", span)
        if reply in (text.strip() for text in record.choices):
            return Found(reply, "the whole reply is a choice", span)
        if not record.choices or reply == record.gold.strip():
            return Found(reply, "the whole reply", span)
        return None

    def judge(self, answer: str, record: ItemRecord) -> float:
        right = {record.gold.strip()}
        if record.gold_index >= 0:
            right.add(record.choices[record.gold_index].strip())
        return float(answer in right)
