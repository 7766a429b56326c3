"""Token ids against the rows of the embedding, by the files alone: an id beyond the last row ends a run in an IndexError.

    check_end_ids(files)             eos_token_id and its like are whole numbers
    check_token_ids(files, rows)     every id that can be asked for has a row

Let through, with a warning: special tokens that no text is given (a pad token that was added and never trained, Gemma's picture
token), and the ids that transformers itself writes for GPT-2's and other families when nobody states one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from perplexity_lies.checkpoint.small_files import SmallFiles
from perplexity_lies.errors import CheckpointError

logger = logging.getLogger(__name__)

STATED = ("eos_token_id", "bos_token_id", "pad_token_id")
GIVEN = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token")
"""Special tokens that a tokenizer may put into a text by itself."""

CLASS_DEFAULTS = frozenset(
    (
        313,
        31999,
        32000,
        50256,
        50279,
        50282,
        100257,
        120025,
        124900,
        128001,
        128008,
        128009,
        150024,
        151329,
        151336,
        151338,
    )
    + (151668, 156895, 163586, 163691, 199999, 200006, 200020, 255001)
)
"""End tokens that transformers' config classes state by default: in a small checkpoint nobody meant them."""


class Token(NamedTuple):
    """One token that stands in the tokenizer's files."""

    id: int
    text: str
    special: bool


def check_end_ids(files: SmallFiles) -> None:
    """Raises CheckpointError where an eos, bos or pad token is stated as anything but a whole number or none.

    eos_token_id may also be a list of them.
    """
    for file, config in _configs(files):
        for key in STATED:
            stated = config.get(key)
            values = stated if key == "eos_token_id" and isinstance(stated, list) and stated else [stated]
            if all(value is None or type(value) is int for value in values) and (stated is None or None not in values):
                continue
            raise CheckpointError(
                f"checkpoint {files.name!r}: {file} states a {key} that is no token id",
                found=f"{key}: {json.dumps(stated)[:100]}; expected a whole number"
                + (", or a list of them" if key == "eos_token_id" else ""),
                mend=f"write the id that tokenizer.json gives that token, or use the {file} saved with these weights",
            )


def _configs(files: SmallFiles) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file, values) of every place that states an end token."""
    yield "config.json", files.config
    if isinstance(text := files.config.get("text_config"), dict):
        yield "config.json", text
    yield "generation_config.json", files.generation_config or {}


def check_token_ids(files: SmallFiles, rows: int) -> None:
    """Raises CheckpointError where a token that can be asked for, or a stated end token, has no row in the embedding."""
    found = [*_vocabulary_beyond(files, rows), *_added_beyond(files, rows), *_stated_beyond(files, rows)]
    if found:
        raise CheckpointError(
            f"checkpoint {files.name!r}: weights, config.json and tokenizer do not belong together",
            found=found,
            mend=(
                "use the config.json and tokenizer.json that were saved with these weights",
                "a token that was added to the tokenizer alone: model.resize_token_embeddings(len(tokenizer)), and save both",
            ),
        )


def _ids(vocabulary: object) -> list[int]:
    match vocabulary:
        case dict():
            return [value for value in vocabulary.values() if type(value) is int]
        case list():
            return [len(vocabulary) - 1]
    return []


def _vocabulary_beyond(files: SmallFiles, rows: int) -> list[str]:
    file = "tokenizer.json"
    model = (files.tokenizer or {}).get("model")
    found = _ids(model.get("vocab")) if isinstance(model, dict) else []
    if files.tokenizer is None:
        file, found = "vocab.json", _ids(files.parsed("vocab.json"))
    largest = max(found, default=-1)
    return [f"{file}: token ids to {largest:,}; embedding: {rows:,} rows"] if largest >= rows else []


def _added(files: SmallFiles) -> list[Token]:
    """Tokens that were added to the vocabulary, in any of the files that may say so."""
    found: dict[int, Token] = {}
    for text, number in (files.parsed("added_tokens.json") or {}).items():
        if type(number) is int:
            found[number] = Token(number, text, False)
    decoder = files.tokenizer_config.get("added_tokens_decoder")
    entries = [{**entry, "id": number} for number, entry in _items(decoder) if isinstance(entry, dict)]
    listed = (files.tokenizer or {}).get("added_tokens")
    for entry in (*entries, *(listed if isinstance(listed, list) else ())):
        match entry:
            case {"id": int() | str() as number, "content": str(text)} if str(number).isdecimal():
                found[int(number)] = Token(int(number), text, entry.get("special") is True)
    return list(found.values())


def _items(values: object) -> list[tuple[Any, Any]]:
    return list(values.items()) if isinstance(values, dict) else []


def _texts(value: object) -> str:
    """A special token as tokenizer_config.json states it: its text, or an object that holds it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _added_beyond(files: SmallFiles, rows: int) -> list[str]:
    beyond = sorted(token for token in _added(files) if token.id >= rows)
    config = files.tokenizer_config
    given = {
        _texts(source.get(name)) for source in (config, files.parsed("special_tokens_map.json") or {}) for name in GIVEN
    }
    placed = json.dumps((files.tokenizer or {}).get("post_processor"), ensure_ascii=False)
    templates = _templates(files)
    asked = [t for t in beyond if not t.special or t.text in given or json.dumps(t.text, ensure_ascii=False) in placed
             or t.text in templates]  # fmt: skip
    unused = [token for token in beyond if token not in asked]
    if unused:
        logger.warning("checkpoint %s: no row in the embedding (%d rows) for special tokens that no text is given: %s",
                       files.name, rows, ", ".join(f"{token.text!r} {token.id}" for token in unused[:5]))  # fmt: skip
    more = f" and {len(asked) - 3} more" if len(asked) > 3 else ""
    shown = ", ".join(f"{token.text!r} {token.id:,}" for token in asked[:3])
    return [f"tokenizer: added tokens {shown}{more}; embedding: {rows:,} rows"] if asked else []


def _templates(files: SmallFiles) -> str:
    """All chat templates, as one text."""
    loose = [content for path, content in files.tokenizer_files.items() if path.suffix == ".jinja"]
    own = json.dumps(files.tokenizer_config.get("chat_template", ""), ensure_ascii=False)
    return own + b"\n".join(loose).decode("utf-8", "replace")


def _stated_beyond(files: SmallFiles, rows: int) -> list[str]:
    found = []
    for file, config in _configs(files):
        for key in STATED:
            stated = config.get(key)
            values = [value for value in (stated if isinstance(stated, list) else [stated]) if type(value) is int]
            lowest = -rows if key == "pad_token_id" else 0  # -1, the last row, is how Llama's first configs say "none"
            beyond = [value for value in values if not lowest <= value < rows]
            if not beyond:
                continue
            told = f"{file}: {key} {', '.join(map(str, beyond))}; embedding: {rows:,} rows"
            if len(beyond) < len(values) or CLASS_DEFAULTS.issuperset(beyond):
                logger.warning("checkpoint %s: %s: it is never met", files.name, told)
            else:
                found.append(told)
    return found
