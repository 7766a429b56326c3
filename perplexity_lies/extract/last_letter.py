"""`last_letter@1`: the last capital letter of a choice anywhere in the reply.

The fallback of many answer parsers, kept here to show what it is worth: it pays chance credit to babble, since `A` is also
a word. Compare its score with that of `strict` before you believe either.
"""

from __future__ import annotations

from typing import ClassVar

from perplexity_lies.extract.base import Extractor, Found, letter
from perplexity_lies.record.records import FALLBACK, ItemRecord

ALPHABET = 26
RULE = f"{FALLBACK}: last capital letter anywhere (pays chance credit)"


class LastLetter(Extractor):
    """Any capital from `A` to the letter of the last choice; to `Z` where there are no choices."""

    name: ClassVar[str] = "last_letter"
    version: ClassVar[int] = 1

    def find(self, record: ItemRecord) -> Found | None:
        letters = {letter(index) for index in range(min(len(record.choices) or ALPHABET, ALPHABET))}
        for at in range(len(record.text) - 1, -1, -1):
            if record.text[at] in letters:
                return Found(record.text[at], RULE, (at, at + 1))
        return None

    def judge(self, answer: str, record: ItemRecord) -> float:
        """Against the reference where it is a letter, else against the letter of the right choice."""
        letters = {letter(index) for index in range(ALPHABET)}
        right = record.gold if record.gold in letters or record.gold_index < 0 else letter(record.gold_index)
        return float(answer == right)
