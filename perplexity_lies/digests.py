"""Keys and digests: one text for equal content, one hash for equal text.

    short_key({"suite": "sha256:...", "limit": 50})  ->  "3f1a5c9e0b7d"

A key leaves out what stands at its default (`without_defaults`), so that an option added later changes no key of today.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

KEY_DIGITS = 12
"""Hex digits of a key that names a file or a folder."""


def canonical_json(content: Any) -> str:
    """One text for equal content: sorted keys, no spaces. Raises ValueError for NaN and infinity."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex digest of a text's UTF-8 bytes; half a surrogate pair, which a stranger's JSON may hold, is hashed as it is."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def content_key(content: Any) -> str:
    """Hex digest of plain content: equal content has equal keys."""
    return sha256_text(canonical_json(content))


def short_key(content: Any) -> str:
    """The first `KEY_DIGITS` digits of `content_key`."""
    return content_key(content)[:KEY_DIGITS]


def without_defaults(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that do not stand at their default, as plain values; nested dataclasses likewise."""
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            kept[field.name] = without_defaults(value) if dataclasses.is_dataclass(value) else value
    return kept
