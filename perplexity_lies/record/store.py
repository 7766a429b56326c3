"""The run directory: where the two wings meet.

    RUN/manifest.json                   what ran on what, with which versions; `complete` when every record is there
    RUN/responses/<rung>.jsonl          what the engine answered, by content key, as it came: the journal
    RUN/records/<task>.<rung>.jsonl     one ItemRecord a line, written whole
    RUN/logs/                           what the libraries said

A process may be killed at any moment: the journal loses at most its torn last line, every other file is replaced whole.
Started again with the same identity, a run continues from its journal.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from perplexity_lies.checked import checked
from perplexity_lies.digests import short_key
from perplexity_lies.errors import UsageError
from perplexity_lies.files import read_json, write_whole
from perplexity_lies.record.journal import Journal
from perplexity_lies.record.manifest import RUN_FORMAT, Manifest
from perplexity_lies.record.records import ItemRecord, dump_records, read_records

LABEL_CHARACTERS = 60
"""Most characters of suite and checkpoint in a run directory's name."""


@dataclass(slots=True)
class Run:
    """One run directory, open for reading, or for writing when it came from `start_run`."""

    path: Path
    manifest: Manifest
    _lock: IO[str] | None = field(default=None, repr=False)

    def journal(self, rung: str) -> Journal:
        """The journal of one rung."""
        return Journal(self.path / "responses" / f"{rung}.jsonl")

    def log_path(self, name: str) -> Path:
        """The file that `name`'s output goes to."""
        path = self.path / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def records_path(self, task: str, rung: str) -> Path:
        """The file of one task's records on one rung."""
        return self.path / "records" / f"{task}.{rung}.jsonl"

    def write_records(self, rung: str, records: Iterable[ItemRecord]) -> None:
        """Replace the records of one rung, a file for each task, in the order given."""
        by_task: dict[str, list[ItemRecord]] = {}
        for record in records:
            by_task.setdefault(record.task, []).append(record)
        for task, found in by_task.items():
            write_whole(self.records_path(task, rung), dump_records(found))

    def has_records(self, task: str, rung: str) -> bool:
        """Whether this task's records on this rung are on disk."""
        return self.records_path(task, rung).exists()

    def record_files(self) -> list[Path]:
        """The records files, by name."""
        return sorted((self.path / "records").glob("*.jsonl"))

    def records(self, paths: Iterable[Path] | None = None) -> Iterator[ItemRecord]:
        """The records of `paths`, all files by default, one at a time. Raises UsageError where a file holds something else."""
        for path in self.record_files() if paths is None else paths:
            try:
                yield from read_records(path)
            except (ValueError, OSError) as error:
                raise UsageError(
                    f"run {self.path} holds a file that is not records", found=str(error),
                    mend="delete that file and run the same `plies evaluate` again: its answers are in responses/",
                ) from error  # fmt: skip

    def records_digest(self) -> str:
        """sha256 over the records, whatever their order and their files."""
        lines = []
        for path in self.record_files():
            with path.open("rb") as file:
                lines += [hashlib.sha256(line).digest() for line in file]
        return f"sha256:{hashlib.sha256(b''.join(sorted(lines))).hexdigest()}"

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest, in memory and on disk."""
        self.manifest = dataclasses.replace(self.manifest, **changes)
        write_whole(self.path / "manifest.json", self.manifest.to_json())

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def start_run(out: Path, *, identity: dict[str, Any], manifest: Manifest, label: str) -> Run:
    """The run directory `OUT/<label>-<key of the identity>`, new or continued, locked for this process.

    Raises UsageError when another process holds it or when `out` cannot be written.
    """
    path = out / f"{_slug(label)}-{short_key(identity)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written", found=str(error), mend="--out DIR with a directory of yours"
        ) from error
    stored = path / "manifest.json"
    if not stored.exists():
        write_whole(stored, manifest.to_json())
        return Run(path, manifest, lock)
    try:
        return dataclasses.replace(open_run(path), _lock=lock)
    except UsageError as error:
        lock.close()
        raise UsageError(
            error.asked, found=error.found, mend=f"delete {stored}, then the same again: its answers are in responses/"
        ) from error


def _locked(path: Path) -> IO[str]:
    """The lock of a run directory, held. Raises UsageError when another process holds it, OSError when it cannot be written."""
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UsageError(
            f"run {path} is being written by another process",
            found="its lock is held",
            mend="wait for it, or give another --out",
        ) from error
    return lock


def reopen_run(path: Path | str) -> Run:
    """A run directory that is there, for writing: locked for this process. Close it.

    Raises UsageError for a path that is not one, when another process holds it, and when it cannot be written.
    """
    found = open_run(path)
    try:
        lock = _locked(found.path)
    except OSError as error:
        raise UsageError(
            f"run {path} cannot be written", found=str(error), mend="a copy of it that is yours"
        ) from error
    return dataclasses.replace(open_run(path), _lock=lock)


def open_run(path: Path | str) -> Run:
    """A run directory for reading. Raises UsageError for a path that is not one."""
    path = Path(path)
    wanted, mend = f"{path} is not a run directory", "plies evaluate CHECKPOINT --suite NAME --out DIR makes one"
    if not path.is_dir():
        raise UsageError(wanted, found="a file" if path.exists() else "nothing there", mend=mend)
    stored = path / "manifest.json"
    if not stored.exists():
        inside = sorted(p.parent.name for p in path.glob("*/manifest.json"))
        found = f"no manifest.json{'; runs inside: ' + ', '.join(inside[:8]) if inside else ''}"
        raise UsageError(wanted, found=found, mend=mend)
    raw = read_json(stored, wanted, mend)
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise UsageError(wanted, found="manifest.json states no format number", mend=mend)
    if raw["format"] != RUN_FORMAT:
        raise _another_format(path, raw)
    return Run(path, checked(Manifest, raw, f"{path}: manifest.json", mend))


def _another_format(path: Path, raw: dict[str, Any]) -> UsageError:
    """What to tell of a run that another version made, with the command that repeats it."""
    sections = (raw.get("checkpoint"), raw.get("suite"))
    checkpoint, suite = (part if isinstance(part, dict) else {} for part in sections)
    limit = f" --limit {suite['limit']}" if type(suite.get("limit")) is int else ""
    again = f"plies evaluate {checkpoint.get('name', 'CHECKPOINT')} --suite {suite.get('name', 'NAME')}{limit}"
    return UsageError(
        f"run {path} was made by format {raw['format']} of the run directory",
        found=f"this version reads format {RUN_FORMAT}",
        mend=f"{again} --out {path.parent.parent}   (with the --data, --engine and --dtype it had)",
    )


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[-LABEL_CHARACTERS:] or "run"
