"""Rows of a source, in its own order, from any row on: local .jsonl, .txt and .parquet files, or a dataset by name.

The `datasets` library streams datasets, and local folders in hub layout; its environment variables (HF_DATASETS_OFFLINE,
HF_HOME, HF_ENDPOINT) apply. A line of a .txt file is a row with the column `text`, as there. Every row says where it stands.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from distill.recipe.settings import DataConfig
from perplexity_lies.errors import MissingError, UsageError, from_table, nearest

Row = tuple[str, Mapping[str, Any]]
"""Where it stands (for error messages), and its columns."""
EXTRA = "eval"
"""What to install for `datasets` and pyarrow."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, and what identifies them."""

    identity: dict[str, Any]
    """Equal for equal rows: names, sizes and times of the files, or the name of the dataset."""
    version: Callable[[], Any]
    """sha256 by file (reads them all), or the `datasets` library's own hash."""
    rows: Callable[[int], Iterator[Row]]
    """Rows from a number (0-based) on."""


def text_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Lines that are not empty, as rows {text}."""
    for number, line in lines(path):
        yield f"{path}, line {number}", {"text": line}


def json_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """JSON objects, one a line. Raises UsageError for a line that is none."""
    for number, line in lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where} is not JSON", found=str(error), mend="mend or delete that line") from error
        if not isinstance(row, dict):
            found = f"{type(row).__name__}: {line:.80}"
            raise UsageError(f"{where} is not an object", found=found, mend='{"text": "..."} on every line')
        yield where, row


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1. Raises UsageError for text that is not UTF-8."""
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        found = f"after line {number}: {error.reason}"
        raise UsageError(f"{path} is not UTF-8 text", found=found, mend=f"iconv -t UTF-8 {path}") from error


def parquet_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Rows with `columns` alone. Raises UsageError for a file that is not parquet or lacks one of them."""
    open_parquet = from_table("pyarrow.parquet:ParquetFile", f"{path} needs pyarrow to be read", EXTRA)
    try:
        file = open_parquet(path)
    except ValueError as error:
        raise UsageError(f"{path} is not a parquet file", found=str(error), mend="fetch or make it again") from error
    for column in columns:
        lookup(dict.fromkeys(file.schema_arrow.names), column, str(path))
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


READERS: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".txt": text_rows,
    ".parquet": parquet_rows,
}


def lookup(row: Mapping[str, Any], column: str, where: str) -> Any:
    """A row's column. Raises UsageError, with the nearest name, when it is not there."""
    if column not in row:
        raise UsageError(
            f"{where} has no column '{column}'{nearest(column, row)}",
            found=f"columns: {', '.join(row)}",
            mend="text: COLUMN, messages: COLUMN or at_least: {COLUMN: ...} with one of these",
        )
    return row[column]


def find_files(source: str) -> list[Path]:
    """Files of a path or glob, sorted. Raises MissingError when there is none, UsageError for one of an unknown kind."""
    paths = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())
    if not paths:
        raise MissingError(
            f"no file '{source}'", found=f"the working directory is {Path.cwd()}", mend="source: 'FOLDER/*.jsonl'"
        )
    for path in paths:
        if path.suffix not in READERS:
            raise UsageError(f"{path} cannot be read", found=f"'{path.suffix}'", mend=f"one of {', '.join(READERS)}")
    return paths


def stamps(paths: list[Path]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of each file: cheap to compare, where the content is not."""
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def file_source(source: str, columns: list[str]) -> Source:
    """The rows of local files, one file after the other."""
    paths = find_files(source)

    def version() -> dict[str, str]:
        digests = {}
        for path in paths:
            with path.open("rb") as file:
                digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def rows(start: int) -> Iterator[Row]:
        return islice((row for path in paths for row in READERS[path.suffix](path, columns)), start, None)

    return Source({"files": stamps(paths)}, version, rows)


def dataset_source(config: DataConfig) -> Source:
    """The rows of a dataset by name, or of a folder in hub layout."""
    name = config.source

    @functools.cache
    def builder() -> Any:
        load = from_table("datasets:load_dataset_builder", f"dataset '{name}' needs the library datasets", EXTRA)
        try:
            return load(name, config.subset, data_dir=config.data_dir, revision=config.revision)
        except OSError as error:  # no such dataset, no network, offline: all are
            raise MissingError(
                f"dataset '{name}' cannot be had",
                found=str(error).splitlines()[0],
                mend=[
                    f"hf download --repo-type dataset {name} --local-dir DIR, where there is a network",
                    "source: DIR",
                ],
            ) from error
        except ValueError as error:
            asked = f"dataset '{name}' has no subset '{config.subset}'"
            raise UsageError(asked, found=str(error), mend="subset: NAME with one of these") from error

    def rows(start: int) -> Iterator[Row]:
        number = start
        try:
            stream = builder().as_streaming_dataset(split=config.split)
        except ValueError as error:
            asked = f"dataset '{name}' has no split '{config.split}'"
            raise UsageError(asked, found=str(error), mend="split: NAME with one of these") from error
        try:
            for number, row in enumerate(stream.skip(start), start + 1):
                yield f"{name}, row {number}", row
        except OSError as error:
            raise MissingError(
                f"dataset '{name}' broke off after row {number:,}",
                found=str(error).splitlines()[:1],
                mend="the same command again: it goes on there",
            ) from error

    folder = stamps(sorted(path for path in Path(name).rglob("*") if path.is_file())) if Path(name).is_dir() else []
    identity = {
        "dataset": name,
        "subset": config.subset,
        "data_dir": config.data_dir,
        "split": config.split,
        "revision": config.revision,
        "files": folder,
    }
    return Source(identity, lambda: builder().hash, rows)


def open_source(config: DataConfig, columns: list[str]) -> Source:
    """The rows of a recipe's data. Raises MissingError for local files that are not there."""
    name = config.source
    if Path(name).is_dir():
        return dataset_source(config)
    if Path(name).exists() or Path(name).suffix in READERS or glob.has_magic(name):
        return file_source(name, columns)
    return dataset_source(config)
