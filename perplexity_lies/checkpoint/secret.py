"""The API key: read from the environment, refused where it cannot be sent, and taken out of whatever comes back.

    key = read_key()
    hidden("wrong key: sk-123...", key)        "wrong key: [PLIES_API_KEY]"

Servers echo a key in their errors, and errors go into records, journals and logs.
"""

from __future__ import annotations

import os
from typing import Any

from perplexity_lies.errors import UsageError

API_KEY = "PLIES_API_KEY"
"""Environment variable whose value is sent to the server as a bearer token, and nowhere else."""

SECRET_LETTERS = 8
"""A shorter key (`EMPTY`, which vLLM's users type) is a word that replies may hold: it stays in them, and goes from errors."""


def read_key() -> str:
    """The key; empty where there is none. Raises UsageError, without showing it, for one that no header can hold."""
    key = os.environ.get(API_KEY, "")
    odd = [c for c in key if not "!" <= c <= "~"]
    if not odd:
        return key
    if odd[0] in "\r\n" and key.rstrip("\r\n") == key.strip():
        found = "it ends in a line break"
    elif odd[0].isascii():
        found = "it holds a blank or a control character"
    else:
        found = "it holds a letter that is not ASCII"
    raise UsageError(
        f"{API_KEY} cannot be sent to a server",
        found=f"{found} ({len(key)} characters, not shown)",
        mend=f"copy the key anew; from a file: {API_KEY}=$(tr -d '[:space:]' < FILE)",
    )


def hidden(text: str, key: str) -> str:
    """`text` with the key taken out."""
    return text.replace(key, f"[{API_KEY}]") if key else text


def hidden_in(content: Any, key: str) -> Any:
    """Plain values with the key taken out of every text; a key too short to be a secret stays."""
    if len(key) < SECRET_LETTERS:
        return content
    match content:
        case str():
            return hidden(content, key)
        case list():
            return [hidden_in(value, key) for value in content]
        case dict():
            return {hidden(name, key): hidden_in(value, key) for name, value in content.items()}
    return content
