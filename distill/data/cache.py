"""Documents are tokenised once: ids, document starts and completions on disk, read by memory map.

    <cache>/<name>-<key>/   ids.bin        uint16 or uint32, all documents one after the other
                            documents.bin  int64 [documents + 1, 2]: where each begins in ids and in spans
                            spans.bin      int32 [spans, 2]: completions, from their document's beginning
                            manifest.json  what was read, by which tokenizer, how far, and what was left out

The files only grow; the manifest, replaced whole, says how much of them counts. So a killed writer goes on at the row of its
last manifest and ends with the same bytes, and a later run can add tokens. One process writes at a time, the others wait.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distill.data.encode import NO_COMPLETION, Conversations, Encode, text_encoder, tokenizer_digest
from distill.data.packing import Tokens
from distill.data.rows import Source, lookup, open_source
from distill.recipe.settings import DataConfig
from perplexity_lies.digests import short_key
from perplexity_lies.errors import UsageError
from perplexity_lies.files import read_json, write_whole
from perplexity_lies.progress import Reporter

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("ids.bin", "documents.bin", "spans.bin")
CHUNK_ROWS = 256
"""Rows that go through the tokenizer at a time."""
COMMIT_S = 5.0
"""Seconds between two manifests: the most work that a killed writer loses."""
TOO_LONG = "too long"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised documents, in the order of their source."""

    ids: NDArray[np.unsignedinteger[Any]]
    starts: NDArray[np.int64]
    """[documents + 1, 2]: where each begins in `ids` and in `spans`."""
    spans: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Tokens:
        (start, first), (end, last) = self.starts[number].tolist(), self.starts[number + 1].tolist()
        return Tokens(self.ids[start:end].tolist(), tuple((a, b) for a, b in self.spans[first:last].tolist()))

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.starts[-1, 0])

    def upto(self, tokens: int) -> Corpus:
        """The first documents that have at least `tokens` tokens, or all: the same however far the cache has grown."""
        count = int(np.searchsorted(self.starts[:, 0], tokens)) or 1
        return Corpus(self.ids, self.starts[: count + 1], self.spans)


def window(document: Tokens, start: int, end: int) -> Tokens:
    """Tokens `start` to `end` (exclusive) as a document of their own."""
    spans = ((max(a, start) - start, min(b, end) - start) for a, b in document.completions if a < end and b > start)
    return Tokens(document.ids[start:end], tuple(spans))


def fitted(document: Tokens, length: int, too_long: str) -> list[Tokens]:
    """A document as documents of at most `length` tokens, by the rule `DataConfig.too_long`."""
    size = len(document.ids)
    if size <= length:
        return [document]
    ends = {"drop": 0, "cut": length, "split": size}[too_long]
    return [window(document, start, min(start + length, size)) for start in range(0, ends, length)]


def enough(row: Any, at_least: dict[str, float], where: str) -> bool:
    """Whether a row's columns reach the values of `at_least`; a column without a value does not."""
    for column, least in at_least.items():
        value = lookup(row, column, where)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UsageError(
                f"{where}: column '{column}' is not a number",
                found=f"{value!r:.80}",
                mend="at_least: {COLUMN: 4} with a column of numbers",
            )
        if value is None or not value >= least:
            return False
    return True


class _Writer:
    """The files of a cache, open for appending; what the manifest does not count is cut off first."""

    def __init__(self, directory: Path, sizes: list[int], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._files: list[BinaryIO] = []
        for name, size in zip(FILES, sizes, strict=True):
            file = (directory / name).open("ab")
            file.truncate(size)
            self._files.append(file)

    def append(self, documents: list[Tokens], tokens: int, spans: int) -> None:
        """Writes documents; `tokens` and `spans`: how many stand before them."""
        starts: list[tuple[int, int]] = []
        for document in documents:
            tokens, spans = tokens + len(document.ids), spans + len(document.completions)
            starts.append((tokens, spans))
        ids = np.array([number for document in documents for number in document.ids], dtype=self._dtype)
        ranges = np.array([span for document in documents for span in document.completions], dtype="<i4")
        for file, values in zip(self._files, (ids, np.array(starts, dtype="<i8"), ranges), strict=True):
            file.write(values.tobytes())

    def sync(self) -> None:
        """Flushes to the disk itself."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()


class TokenCache:
    """The cache of one source for one tokenizer and row length. Raises what `open_source` raises."""

    def __init__(self, name: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase, length: int, cache: Path):
        self.name, self._config, self._length = name, config, length
        self._column = config.text or config.messages or ""
        self._tokenizer = tokenizer
        self._dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
        self._source: Source = open_source(config, [self._column, *config.at_least])
        self._identity: dict[str, Any] = {
            "format": FORMAT,
            "source": self._source.identity,
            "text" if config.text else "messages": self._column,
            "at_least": config.at_least,
            "too_long": config.too_long,
            "length": length,
            "tokenizer": tokenizer_digest(tokenizer),
        }
        self.directory = cache / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{short_key(self._identity)}"
        self._read()

    def _read(self) -> None:
        """Reads the manifest. Raises UsageError when the files hold less than it counts."""
        path, mend = self.directory / MANIFEST, f"rm -r {self.directory}"
        known: dict[str, Any] = read_json(path, f"the cache {self.directory} is damaged", mend) if path.exists() else {}
        self.exhausted: bool = known.get("exhausted", False)
        self.counts: Counter[str] = Counter(known.get("counts", {}))
        self.left_out: Counter[str] = Counter(known.get("left_out", {}))
        self._version = known.get("version")
        if known:
            for name, size in zip(FILES, self._sizes(), strict=True):
                if (self.directory / name).stat().st_size < size:
                    raise UsageError(
                        f"the cache {self.directory} is damaged",
                        found=f"{name} is shorter than its manifest says",
                        mend=mend,
                    )

    def _sizes(self) -> list[int]:
        """Bytes that count, of each file."""
        return [
            self.counts["tokens"] * self._dtype.itemsize,
            (self.counts["documents"] + 1) * 16,
            self.counts["spans"] * 8,
        ]

    def grow(self, tokens: int, documents: int, reporter: Reporter) -> None:
        """Reads on until the cache has `tokens` and `documents`, or the source no more rows."""
        if self._has(tokens, documents):
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with FileLock(self.directory / "lock"):
            self._read()  # another process may have been here while this one waited
            if not self._has(tokens, documents):
                self._write(tokens, documents, reporter)

    def _has(self, tokens: int, documents: int) -> bool:
        return self.exhausted or (self.counts["tokens"] >= tokens and self.counts["documents"] >= documents)

    def _write(self, tokens: int, documents: int, reporter: Reporter) -> None:
        version = self._source.version()
        if self._version not in (None, version):
            raise UsageError(
                f"data '{self.name}' has changed since {self.directory} was begun",
                found=f"{self._version} became {version}",
                mend=["revision: ... in the recipe keeps a dataset as it is", f"rm -r {self.directory} begins anew"],
            )
        self._version = version
        if not (self.directory / MANIFEST).exists():
            (self.directory / FILES[1]).write_bytes(bytes(16))
        encode = Conversations(self._tokenizer) if self._config.messages else text_encoder(self._tokenizer)
        total, unit = (tokens, "tokens") if tokens else (documents, "documents")
        writer, committed = _Writer(self.directory, self._sizes(), self._dtype), time.monotonic()
        rows = self._source.rows(self.counts["rows"])
        try:
            with reporter.step(f"{unit} of {self.name}", total, min(self.counts[unit], total)) as advance:
                while not self._has(tokens, documents):
                    before = self.counts[unit]
                    self._take(list(islice(rows, CHUNK_ROWS)), encode, writer)
                    advance(min(self.counts[unit], total) - min(before, total))
                    if time.monotonic() - committed > COMMIT_S:
                        self._commit(writer)
                        committed = time.monotonic()
        finally:
            self._commit(writer)
            writer.close()

    def _take(self, rows: list[tuple[str, Any]], encode: Encode, writer: _Writer) -> None:
        """Encodes rows, writes their documents and counts them."""
        config, left_out = self._config, Counter[str]()
        kept = [(where, row) for where, row in rows if enough(row, config.at_least, where)]
        left_out["below " + ", ".join(f"{c} {v:g}" for c, v in config.at_least.items())] += len(rows) - len(kept)
        documents: list[Tokens] = []
        for document in encode([(where, lookup(row, self._column, where)) for where, row in kept]):
            if isinstance(document, str):
                left_out[document] += 1
                continue
            pieces = fitted(document, self._length, config.too_long)
            taught = [piece for piece in pieces if any(end > 1 for _, end in piece.completions)]
            if not pieces:
                left_out[TOO_LONG] += 1
            elif len(document.ids) > self._length:
                self.counts[config.too_long] += 1
            left_out[NO_COMPLETION] += len(pieces) - len(taught)
            documents += taught
        writer.append(documents, self.counts["tokens"], self.counts["spans"])
        self.counts.update(
            rows=len(rows),
            documents=len(documents),
            tokens=sum(len(document.ids) for document in documents),
            spans=sum(len(document.completions) for document in documents),
            completion_tokens=sum(end - start for document in documents for start, end in document.completions),
        )
        self.left_out += left_out
        self.exhausted = len(rows) < CHUNK_ROWS

    def _commit(self, writer: _Writer) -> None:
        """Flushes the files and writes the manifest that counts them."""
        writer.sync()
        manifest = {
            "identity": self._identity,
            "version": self._version,
            "counts": dict(self.counts),
            "left_out": dict(self.left_out),
            "exhausted": self.exhausted,
        }
        write_whole(self.directory / MANIFEST, json.dumps(manifest, indent=2))

    def corpus(self) -> Corpus:
        """All documents of the cache. Raises UsageError when there are none."""
        if not self.counts["documents"]:
            raise UsageError(
                f"data '{self.name}' has no documents",
                found=self.summary(),
                mend=f"--set data.{self.name}.too_long=split, or another source or at_least",
            )

        def mapped(name: str, dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
            return np.memmap(self.directory / name, dtype=dtype, mode="r", shape=shape)

        return Corpus(
            mapped(FILES[0], self._dtype, self.counts["tokens"]),
            mapped(FILES[1], np.dtype("<i8"), self.counts["documents"] + 1, 2),
            mapped(FILES[2], np.dtype("<i4"), self.counts["spans"], 2),
        )

    def summary(self) -> str:
        """One line: what was read, cut and left out."""
        counts = self.counts
        parts = [f"{counts['documents']:,} documents of {counts['tokens']:,} tokens from {counts['rows']:,} rows"]
        parts += [f"{counts[rule]:,} {rule} at {self._length} tokens" for rule in ("split", "cut") if counts[rule]]
        parts += [f"{count:,} left out: {reason}" for reason, count in sorted(self.left_out.items())]
        return "; ".join(parts)
