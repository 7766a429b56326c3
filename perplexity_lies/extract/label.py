"""`label@1`: the letter that a reply gives as its answer, from A to the last choice's.

    "B"   " B) fig"   "(B)"   "I think of figs. Answer: B"        ->  "B"
    "Bananas"   "A man walks in"   "F" (of four choices)          ->  no answer

First the last letter after `answer`, `answer is`, `answer:`; else a letter with which the reply begins, alone or before a
sign or a line break. The headline of multiple-choice tasks on the ladder.
"""

from __future__ import annotations

import re
from typing import ClassVar

from perplexity_lies.extract.base import Extractor, Found, letter
from perplexity_lies.record.records import ItemRecord

LETTERS = 26
SAID = re.compile(r"(?:answer|答案)(?:\s+is|\s*是)?\s*[:：]?\s*[*(\[\"']{0,3}([A-Z])(?![A-Za-z])", re.IGNORECASE)
FIRST = re.compile(r"\s*[*(\[\"']{0,3}([A-Z])(?=\s*(?:[.,:;)\]*\"'\n]|$))")


class Label(Extractor):
    """Letters count in capitals alone."""

    name: ClassVar[str] = "label"
    version: ClassVar[int] = 1

    def find(self, record: ItemRecord) -> Found | None:
        letters = {letter(index) for index in range(min(len(record.choices) or LETTERS, LETTERS))}
        said = [match for match in SAID.finditer(record.text) if match[1] in letters]
        if said:
            return Found(said[-1][1], "after the word answer", said[-1].span(1))
        begins = FIRST.match(record.text)
        if begins is not None and begins[1] in letters:
            return Found(begins[1], "first letter", begins.span(1))
        return None
