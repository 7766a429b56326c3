"""`number@1`: the last number in the reply, compared as a number: `1,234.0` is `1234`.

Digits may be grouped by commas; a sign counts where no digit, letter or bracket stands before it (`5-3` holds 5 and 3).
Fractions, exponents and words are not read as numbers.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import ClassVar

from perplexity_lies.extract.base import Extractor, Found
from perplexity_lies.record.records import ItemRecord

NUMBER = re.compile(r"(?:(?<![\w)\]])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)", re.ASCII)


class Number(Extractor):
    """Right where it equals the last number of the reference."""

    name: ClassVar[str] = "number"
    version: ClassVar[int] = 1

    def find(self, record: ItemRecord) -> Found | None:
        last = _last(record.text)
        return Found(last.group(), "last number", last.span()) if last is not None else None

    def judge(self, answer: str, record: ItemRecord) -> float:
        right = _last(record.gold)
        return float(right is not None and _value(answer) == _value(right.group()))


def _last(text: str) -> re.Match[str] | None:
    """The last number of a text."""
    found = list(NUMBER.finditer(text))
    return found[-1] if found else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-"))
