"""The journal of a run: what the engine answered, by content key, appended batch by batch.

A process may be killed at any moment: a journal loses at most its torn last line, and opened again it holds what was written
whole. Of a result that `failed` it keeps nothing, since another try might not fail.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from perplexity_lies.digests import canonical_json
from perplexity_lies.errors import CheckpointError

logger = logging.getLogger(__name__)


def not_numbers(found: str) -> CheckpointError:
    """The error for a checkpoint whose arithmetic breaks down; `found` says where that showed."""
    return CheckpointError(
        "the checkpoint's log-likelihoods are not numbers",
        found=found,
        mend=["--dtype float32 or bfloat16 (float16 overflows)", "check that its weights are whole"],
    )


def entry(result: Any) -> dict[str, Any]:
    """An engine's result (a dataclass with a `key`) as plain values. Raises CheckpointError for one that is not a number."""
    values = asdict(result)
    if any(isinstance(value, float) and not math.isfinite(value) for value in values.values()):
        raise not_numbers(f"a sum of {values.get('loglikelihood_nats')} nats")
    return values


class Journal:
    """Results by key, on disk as soon as `add` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._by_key: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
            logger.warning("%s: dropped a torn last line of %d bytes", self.path, len(data) - whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                found = json.loads(line)
                if not found.get("failed"):
                    self._by_key[found["key"]] = found
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.warning("%s:%d is not a result; it will be computed again", self.path, number)

    def __len__(self) -> int:
        return len(self._by_key)

    def finished(self, key: str) -> bool:
        """Whether the result with this key is here."""
        return key in self._by_key

    def get(self, key: str) -> dict[str, Any]:
        """The result with this key, as plain values. Raises KeyError."""
        return self._by_key[key]

    def add(self, results: Sequence[Any]) -> None:
        """Append a batch of an engine's results; on return it survives the death of this process."""
        entries = [entry(result) for result in results]
        self._file.write("".join(canonical_json(found) + "\n" for found in entries))
        self._file.flush()
        self._by_key.update((found["key"], found) for found in entries)

    def close(self) -> None:
        """Flush to the disk itself and let go of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
