"""The page's section of provenance: every side's manifest, side by side."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import Side

IDENTIFIERS = 200
"""Items named in a group that is left out of a number; the rest stand in comparison.json."""
SHOWN = ("checkpoint", "suite", "datasets", "engine", "settings", "guard", "versions", "tasks", "rounding", "run")
"""Parts of a manifest, in this order; `run` is what the comparison itself says of a side."""


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A manifest's section as lines: nested keys joined by dots."""
    if isinstance(content, dict):
        return [line for key in sorted(content) for line in _flat(content[key], f"{prefix}.{key}" if prefix else key)]
    if isinstance(content, (list, tuple)) and any(isinstance(inner, (dict, list, tuple)) for inner in content):
        return [line for i, inner in enumerate(content) for line in _flat(inner, f"{prefix}[{i}]")]
    return [(prefix, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))]


def _lines(side: Side, section: str) -> dict[str, str]:
    """A section of a side; what is empty is left out."""
    if section == "run":
        return {"records digest": side.records_digest, "rungs": ", ".join(side.manifest.rungs)}
    content = dataclasses.asdict(side.manifest)[section]
    return {key: said for key, said in _flat(content) if said not in ("", "{}", "[]")}


def context(comparison: Comparison) -> dict[str, Any]:
    """What the section's template is filled with: by section lines of a key and one text a side."""
    sections = []
    for section in SHOWN:
        sides = [_lines(side, section) for side in comparison.sides]
        keys = list(dict.fromkeys(key for side in sides for key in side))
        if keys:
            sections.append((section, [(key, [side.get(key, "–") for side in sides]) for key in keys]))
    return {"sections": sections, "identifiers": IDENTIFIERS}
