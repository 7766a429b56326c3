"""Datasets of a suite into a mirror, and what of them is there.

    plies data fetch paper ./hub     ->   ./hub/<org>/<name> for each dataset, their commits in ./hub/REVISIONS.json
    plies data check paper ./hub     ->   a line for each: revision, digest, rows, or that it is missing

The only module that asks a hub; a run never does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perplexity_lies.catalogue.mirror import Mirror, table_of
from perplexity_lies.catalogue.tasks import Suite
from perplexity_lies.errors import MissingError, UsageError

REVISIONS = "REVISIONS.json"
"""Hub id -> commit, beside the datasets' folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """One dataset of a suite as the mirror has it."""

    name: str
    folder: Path | None
    """None where it is missing."""
    revision: str = ""
    """Commit that was fetched; empty where nobody wrote it down."""
    digest: str = ""
    rows: int = 0
    """Rows in its parquet files; 0 where it has none."""

    def __str__(self) -> str:
        if self.folder is None:
            return f"{self.name}: missing"
        return f"{self.name}: {self.rows:,} rows, revision {self.revision or 'not told'}, {self.digest[:19]}, {self.folder}"


def check(suite: Suite, mirror: Mirror) -> Iterator[DatasetFacts]:
    """What the mirror holds of each dataset of `suite`, in the suite's order."""
    lacking, known = set(mirror.missing(suite.datasets)), revisions(mirror.path)
    for name in suite.datasets:
        if name in lacking:
            yield DatasetFacts(name=name, folder=None)
            continue
        folder = mirror.folder(name)
        yield DatasetFacts(
            name=name, folder=folder, revision=known.get(name, ""), digest=mirror.digest(name), rows=_rows(folder)
        )


def _rows(folder: Path) -> int:
    from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped]

    try:
        return sum(parquet.read_metadata(file).num_rows for file in folder.rglob("*.parquet"))
    except (ArrowInvalid, OSError) as error:
        raise UsageError(f"{folder} cannot be read", found=str(error)[:200], mend="fetch it again") from error


def revisions(folder: Path | None) -> dict[str, str]:
    """The commits in `folder`; none where there is no such file. Raises UsageError for one that is not a table."""
    return table_of(folder / REVISIONS, '{"hub/id": "commit"}') if folder is not None else {}


def fetch(suite: Suite, folder: Path) -> Iterator[str]:
    """Download what `folder` lacks of the suite's datasets; a line for each.

    The revision is the suite's (`revisions:`), else the one that `folder` has written down, else the newest. Raises
    MissingError where the hub cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mirror, known = Mirror(folder), revisions(folder)
    for name in suite.datasets:
        wanted = suite.revisions.get(name) or known.get(name)
        if not mirror.missing([name]) and wanted in (None, known.get(name)):
            yield f"{name}: there"
            continue
        known[name] = _download(name, wanted, folder / name)
        (folder / REVISIONS).write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        yield f"{name}: fetched at {known[name]}"


def _download(name: str, revision: str | None, folder: Path) -> str:
    """The dataset's files into `folder`, which is only there once it is whole; returns the commit."""
    from huggingface_hub import HfApi, snapshot_download

    partial = folder.with_name(f".{folder.name}.partial")
    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=20).sha
        snapshot_download(name, repo_type="dataset", revision=commit, local_dir=partial)
    except Exception as error:
        raise MissingError(
            f"dataset {name} cannot be fetched from the hub",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            mend="the same command where the hub can be reached: what is there already is kept",
        ) from error  # fmt: skip
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return str(commit)
