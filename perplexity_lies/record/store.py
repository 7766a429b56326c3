"""The run directory: where the two wings meet.

    RUN/manifest.json                       what ran on what, with which versions; `complete` when every record is there
    RUN/responses/<protocol>.jsonl          what the engine answered, by content hash, as it came: the journal
    RUN/records/<task>.<protocol>.jsonl     one ItemRecord a line, written whole
    RUN/logs/                               what the libraries said

A process may be killed at any moment: the journal loses at most its torn last line, every other file is replaced whole.
Started again with the same identity, a run continues from its journal. Standard library only; knows nothing of engines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from perplexity_lies.errors import UsageError
from perplexity_lies.record.records import ItemRecord, dump_records, read_records

FORMAT = 1
"""Version of the layout above."""

logger = logging.getLogger(__name__)


def canonical_json(content: Any) -> str:
    """One text for equal content: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` whole: a reader, or a kill, sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Journal:
    """Results by key, appended batch by batch; opened again it holds what was written whole and had not `failed`."""

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
                entry = json.loads(line)
                if not entry.get("failed"):  # another try might not fail
                    self._by_key[entry["key"]] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.warning("%s:%d is not a result; it will be computed again", self.path, number)

    def __len__(self) -> int:
        return len(self._by_key)

    def finished(self, key: str) -> bool:
        """Whether the result with this key is here."""
        return key in self._by_key

    def get(self, key: str) -> dict[str, Any]:
        """The result with this key. Raises KeyError."""
        return self._by_key[key]

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """Append a batch; on return it survives the death of this process."""
        self._file.write("".join(canonical_json(result) + "\n" for result in results))
        self._file.flush()
        self._by_key.update((result["key"], result) for result in results)

    def close(self) -> None:
        """Flush to the disk itself and let go of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(slots=True)
class Run:
    """One run directory, open for reading, or for writing when it came from `start_run`."""

    path: Path
    manifest: dict[str, Any]
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether every record of the suite is here."""
        return bool(self.manifest["complete"])

    def journal(self, protocol: str) -> Journal:
        """The journal of one protocol."""
        return Journal(self.path / "responses" / f"{protocol}.jsonl")

    def log_path(self, name: str) -> Path:
        """Where `name`'s output goes."""
        path = self.path / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_records(self, protocol: str, records: Iterable[ItemRecord]) -> None:
        """Replace the records of one protocol, a file for each task, in item order."""
        by_task: dict[str, list[ItemRecord]] = {}
        for record in records:
            by_task.setdefault(record.task, []).append(record)
        for task, of_task in by_task.items():
            write_atomically(self.path / "records" / f"{task}.{protocol}.jsonl", dump_records(of_task))

    def has_records(self, task: str, protocol: str) -> bool:
        """Whether the records of this task under this protocol are on disk."""
        return (self.path / "records" / f"{task}.{protocol}.jsonl").exists()

    def records(self) -> list[ItemRecord]:
        """All records, by file name. Raises UsageError when a file holds something else."""
        found: list[ItemRecord] = []
        for path in sorted((self.path / "records").glob("*.jsonl")):
            try:
                found += read_records(path)
            except (ValueError, OSError) as error:
                raise UsageError(
                    f"run {self.path} holds a file that is not records", found=str(error),
                    mend="delete that file and run the same `plies evaluate` again: its answers are in responses/",
                ) from error  # fmt: skip
        return found

    def update(self, **facts: Any) -> None:
        """Put facts into the manifest."""
        self.manifest = {**self.manifest, **facts}
        write_atomically(self.path / "manifest.json", json.dumps(self.manifest, indent=2, sort_keys=True) + "\n")

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def run_key(identity: dict[str, Any]) -> str:
    """12 hex digits of what must be equal for a run to be continued."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


def start_run(out: Path, *, identity: dict[str, Any], manifest: dict[str, Any], label: str) -> Run:
    """The run directory `OUT/<label>-<key>`, new or continued, locked for this process.

    Raises UsageError when another process holds it or when `out` cannot be written.
    """
    path = out / f"{_slug(label)}-{run_key(identity)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written", found=str(error), mend="--out DIR with a directory of yours"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UsageError(
            f"run {path} is being written by another process",
            found="its lock is held",
            mend="wait for it, or give another --out",
        ) from error
    stored = path / "manifest.json"
    if stored.exists():
        try:
            run = open_run(path)
        except UsageError as error:
            lock.close()
            raise UsageError(
                error.asked,
                found=error.found,
                mend=f"delete {stored}, then the same again: its answers are in responses/",
            ) from error
        run._lock = lock
        return run
    whole = {"format": FORMAT, "complete": False, **manifest}
    write_atomically(stored, json.dumps(whole, indent=2, sort_keys=True) + "\n")
    return Run(path, whole, lock)


def open_run(path: Path | str) -> Run:
    """A run directory for reading. Raises UsageError for a path that is not one."""
    path = Path(path)
    asked = f"{path} is not a run directory"
    mend = "plies evaluate CHECKPOINT --suite NAME --out DIR makes one"
    if not path.is_dir():
        raise UsageError(asked, found="a file" if path.exists() else "nothing there", mend=mend)
    stored = path / "manifest.json"
    if not stored.exists():
        inside = sorted(p.parent.name for p in path.glob("*/manifest.json"))
        raise UsageError(
            asked, found=f"no manifest.json{'; runs inside: ' + ', '.join(inside) if inside else ''}", mend=mend
        )
    try:
        manifest = json.loads(stored.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(asked, found=f"manifest.json cannot be read: {error}", mend=mend) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UsageError(asked, found=f"manifest format {got!r}, this version reads {FORMAT}", mend=mend)
    lacking = {"complete", "checkpoint", "suite", "tasks", "settings", "versions"} - set(manifest)
    if lacking:
        raise UsageError(asked, found=f"manifest.json lacks {', '.join(sorted(lacking))}", mend=mend)
    return Run(path, manifest)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[-60:] or "run"
