"""The small files of a checkpoint, each read once: config, generation config and everything of the tokenizer.

    files = read_small_files("./student", Path("./student"))
    files.config["model_type"]                  "qwen3"
    digest_tokenizer(files)                     "sha256:..."

A file that git-lfs left as a pointer, and a JSON file that is not an object, is an error here, so that the checks that
follow (`preflight`) and the digests get plain values. `adapter_config.json` is not among them: its presence is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perplexity_lies.errors import CheckpointError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that decide how text becomes tokens and messages become text, beside `*.tiktoken` and additional templates."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
AGAIN = "save or copy the checkpoint again; from the hub: hf download ORG/NAME --force-download"

VOLATILE_KEYS = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "is_local"})
"""Keys that every save writes anew and that change no computation; digests leave them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFiles:
    """Contents of one checkpoint directory's small files."""

    name: str
    """The checkpoint as the user typed it, for errors."""
    directory: Path
    config: Mapping[str, Any]
    """config.json; empty where there is none."""
    generation_config: Mapping[str, Any] | None
    """None where there is none."""
    tokenizer_config: Mapping[str, Any]
    """Empty where there is none."""
    tokenizer: Mapping[str, Any] | None
    """tokenizer.json; None where there is none."""
    tokenizer_files: Mapping[Path, bytes]
    """All files of the tokenizer, those two among them, as bytes, sorted by path."""

    def has(self, *names: str) -> bool:
        """Whether the tokenizer has a file of one of these names."""
        return any(self.directory / name in self.tokenizer_files for name in names)

    def parsed(self, name: str) -> dict[str, Any] | None:
        """The JSON object in one of the tokenizer's files; None where there is no such file."""
        content = self.tokenizer_files.get(self.directory / name)
        return None if content is None else _an_object(self.name, name, content)


def listing(directory: Path, *, limit: int = 8) -> str:
    """What lies in a directory, for an error: `config.json, model.safetensors and 3 more`."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in directory.iterdir())
    shown = ", ".join(names[:limit]) or "nothing"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def refuse_lfs_pointer(name: str, path: Path) -> None:
    """Raises CheckpointError where git-lfs left a pointer, a few lines of text, in place of `path`."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(
            f"checkpoint {name!r} was cloned without its large files",
            found=f"{path.name} is a git-lfs pointer of {path.stat().st_size} bytes",
            mend=f"git -C {path.parent} lfs pull",
        )


def _read(name: str, path: Path) -> bytes:
    refuse_lfs_pointer(name, path)
    return path.read_bytes()


def _an_object(name: str, file: str, content: bytes) -> dict[str, Any]:
    # Not files.read_json: a broken checkpoint is exit code 3, and `resolve` has its own words for a file it may not open.
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {name!r}: {file} is not JSON", found=str(error), mend=AGAIN) from error
    if not isinstance(values, dict):
        found = f"a JSON {type(values).__name__}, expected an object"
        raise CheckpointError(f"checkpoint {name!r}: {file} is not an object", found=found, mend=AGAIN)
    return values


def read_object(name: str, path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file. Raises CheckpointError for any other content."""
    return _an_object(name, path.name, _read(name, path)) if path.is_file() else None


def tokenizer_paths(directory: Path) -> list[Path]:
    """The files of the tokenizer in `directory`, sorted."""
    named = (directory / name for name in TOKENIZER_FILES)
    loose = (*directory.glob("*.tiktoken"), *directory.glob("additional_chat_templates/*.jinja"))
    return sorted(path for path in (*named, *loose) if path.is_file())


def read_small_files(name: str, directory: Path) -> SmallFiles:
    """Reads every small file of `directory` once. Raises CheckpointError for one that is a pointer or not a JSON object."""
    config = read_object(name, directory / "config.json")
    tokenizer_files = {path: _read(name, path) for path in tokenizer_paths(directory)}

    def parsed(file: str) -> dict[str, Any] | None:
        content = tokenizer_files.get(directory / file)
        return None if content is None else _an_object(name, file, content)

    return SmallFiles(
        name=name,
        directory=directory,
        config=config or {},
        generation_config=read_object(name, directory / "generation_config.json"),
        tokenizer_config=parsed("tokenizer_config.json") or {},
        tokenizer=parsed("tokenizer.json"),
        tokenizer_files=tokenizer_files,
    )


def digest_parts(parts: Iterable[bytes]) -> str:
    """`sha256:...` over byte strings, each led by its length, so that no two lists of parts give the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def stable_json(content: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, without the volatile ones.

    Not digests.canonical_json: the fingerprints of earlier runs hold these bytes, and a config may hold NaN.
    """
    return json.dumps({k: v for k, v in content.items() if k not in VOLATILE_KEYS}, sort_keys=True).encode()


def digest_tokenizer(files: SmallFiles) -> str:
    """Over name and content of every tokenizer file; volatile keys of tokenizer_config.json do not count."""
    parts = []
    for path, content in files.tokenizer_files.items():
        config = path.name == "tokenizer_config.json"
        parts += [path.name.encode(), stable_json(files.tokenizer_config) if config else content]
    return digest_parts(parts)


def digest_config(files: SmallFiles, *, with_code: bool) -> str:
    """Over config and generation config without volatile keys, and over the checkpoint's Python files if `with_code`."""
    generation = files.generation_config
    parts = [stable_json(files.config), b"" if generation is None else stable_json(generation)]
    for path in sorted(files.directory.glob("*.py")) if with_code else []:
        parts += [path.name.encode(), path.read_bytes()]
    return digest_parts(parts)
