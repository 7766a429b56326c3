"""Files from outside are read here and files of ours are written here: whole or not at all.

write_whole(path, text)                      a reader, or a kill, sees the old content or the new
read_json(path, asked, mend), read_yaml(...)   plain values, or a UsageError that says what is wrong with the file
parse_yaml(text, asked)                      the same for a text that came from elsewhere
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from perplexity_lies.errors import UsageError


def write_whole(path: Path, content: str | bytes) -> Path:
    """Replace `path` by `content` (text as UTF-8), making its folder; returns `path`.

    Text that is not UTF-8 (half a surrogate pair out of a stranger's file) is written with `?` in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def read_json(path: Path, asked: str, mend: str | Iterable[str]) -> Any:
    """Plain values of a JSON file. Raises UsageError (`asked`, what was found, `mend`) where it cannot be read."""
    try:
        return json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except OSError as error:
        raise UsageError(asked, found=str(error), mend=mend) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(asked, found=f"{path.name} is not JSON: {error}"[:300], mend=mend) from error


def read_yaml(path: Path, asked: str) -> Any:
    """Plain values of a YAML file. Raises UsageError as `parse_yaml`, and for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:  # ValueError: no UTF-8
        raise UsageError(
            f"{asked} is not YAML", found=" ".join(str(error).split())[:200], mend="mend the file"
        ) from error
    return parse_yaml(text, asked)


def parse_yaml(text: str, asked: str, mend: str = "mend the file") -> Any:
    """Plain values of YAML text. Raises UsageError for what is not YAML, and for a key that stands twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UsageError(f"{asked} is not YAML", found=" ".join(str(error).split())[:200], mend=mend) from error


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and in which `1e-5` is a number, as in JSON."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)
