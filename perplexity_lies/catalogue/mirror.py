"""An offline mirror of datasets in hub layout: the folder of a dataset, and the digest of its files.

plies never downloads a dataset. The error for a missing one holds the command that fetches it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.files import read_json


@dataclass(frozen=True, slots=True)
class Mirror:
    """An offline copy of datasets in hub layout: DIR/<org>/<name>, and ALIASES.json (id -> folder) where one is there."""

    path: Path | None

    def folder(self, dataset: str) -> Path:
        """Where `dataset` lies. Raises MissingError with the command that fetches it."""
        fetch = f"hf download --repo-type dataset {dataset} --local-dir {self.path or 'DIR'}/{dataset}"
        if self.path is None:
            raise MissingError(
                f"dataset {dataset} is needed, and no mirror was named", found="neither --data nor PLIES_DATA is set",
                mend=[fetch, "then give --data DIR (plies never downloads datasets by itself)"],
            )  # fmt: skip
        for name in dict.fromkeys((dataset, self._aliases().get(dataset, dataset))):
            if (self.path / name).is_dir():
                return (self.path / name).resolve()
        raise MissingError(f"dataset {dataset} is not in the mirror {self.path}", found=self._inside(), mend=fetch)

    def missing(self, datasets: Iterable[str]) -> list[str]:
        """Those of `datasets` that are not here."""
        return [name for name in dict.fromkeys(datasets) if not self._has(name)]

    def _has(self, dataset: str) -> bool:
        try:
            self.folder(dataset)
        except MissingError:
            return False
        return True

    def refuse_missing(self, datasets: Iterable[str], fetch: str) -> None:
        """Raises MissingError that names every dataset that is not here, with the command that fetches them all."""
        lacking = self.missing(datasets)
        if len(lacking) == 1:
            self.folder(lacking[0])
        if lacking:
            found = self._inside() if self.path is not None else "neither --data nor PLIES_DATA is set"
            raise MissingError(
                f"{len(lacking)} datasets are not in the mirror: {', '.join(lacking)}",
                found=found, mend=[fetch, "then give --data DIR"],
            )  # fmt: skip

    def digest(self, dataset: str) -> str:
        """sha256 over the relative names and bytes of a dataset's files."""
        folder, whole = self.folder(dataset), hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder)
            if ".cache" in name.parts:  # what `hf download` keeps for itself
                continue
            whole.update(str(name).encode())
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return f"sha256:{whole.hexdigest()}"

    def _aliases(self) -> dict[str, str]:
        assert self.path is not None
        return table_of(self.path / "ALIASES.json", '{"hub/id": "folder/in/mirror"}')

    def _inside(self) -> str:
        assert self.path is not None
        here = sorted(str(p.relative_to(self.path)) for p in self.path.glob("*/*") if p.is_dir())
        return (
            f"{len(here)} datasets there: {', '.join(here[:6])}{' ...' if len(here) > 6 else ''}"
            if here
            else "no datasets there"
        )


def table_of(file: Path, example: str) -> dict[str, str]:
    """Text to text out of a JSON file; empty where it is not there. Raises UsageError for one that is no such table."""
    if not file.exists():
        return {}
    found = read_json(file, f"{file} cannot be used", "delete it or mend it")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UsageError(f"{file} is not a table", found="not text to text", mend=example)
    return found


def open_mirror(path: Path | str | None) -> Mirror:
    """The mirror at `path`, else at PLIES_DATA, else none. Raises MissingError when what is named is not a directory."""
    path = path if path is not None else os.environ.get("PLIES_DATA") or None
    if path is not None and not os.path.isdir(path):
        raise MissingError(
            f"the mirror {path} (--data or PLIES_DATA) is not a directory",
            found="a file" if os.path.isfile(path) else "nothing there",
            mend="--data DIR in hub layout: DIR/org/name",
        )
    return Mirror(Path(path) if path is not None else None)
