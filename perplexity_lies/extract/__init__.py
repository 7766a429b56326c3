"""Extractors: the ways to read an answer out of a reply. An extractor is a row here and a file in this folder.

    open_extractor("number").read(record)                   ->   Reading(extractor="number@1", answer="1,234", score=1.0, ...)
    open_extractor(r"pattern=answer : (\\d+)").read(record)

A stored reply can be read again at any time: this needs no engine, no torch and no evaluation library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perplexity_lies.errors import UsageError, from_table, nearest
from perplexity_lies.extract.base import Extractor

EXTRACTORS = {
    "pattern": "perplexity_lies.extract.pattern:Pattern",
    "strict": "perplexity_lies.extract.strict:Strict",
    "number": "perplexity_lies.extract.number:Number",
    "label": "perplexity_lies.extract.label:Label",
    "last_letter": "perplexity_lies.extract.last_letter:LastLetter",
    "string_match_all": "perplexity_lies.extract.string_match:StringMatchAll",
    "string_match_part": "perplexity_lies.extract.string_match:StringMatchPart",
}
"""Extractor name -> `module:class`."""


def open_extractor(wanted: str, settings: Mapping[str, Any] | None = None) -> Extractor:
    """The extractor that NAME or NAME=ARGUMENT names, for a task with these settings of the rung.

    Raises UsageError for a name that the table lacks, and for an argument that the extractor cannot use.
    """
    name, _, argument = wanted.partition("=")
    if name not in EXTRACTORS:
        raise UsageError(
            f"there is no extractor {name!r}{nearest(name, EXTRACTORS)}",
            found=f"extractors: {', '.join(EXTRACTORS)}",
            mend="--extractor NAME, or --extractor NAME=ARGUMENT",
        )
    kind: type[Extractor] = from_table(EXTRACTORS[name], f"the extractor {name!r} cannot be used", "all")
    return kind(argument, settings or {})
