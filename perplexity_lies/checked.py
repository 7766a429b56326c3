"""Plain values from a file -> a frozen dataclass, checked by pydantic; what is wrong is said with its place in the file.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Stage(Checked):
        rows: Annotated[int, Ge(1)]

    checked(Stage, {"rows": 0}, "recipe 'x'")   ->   UsageError: recipe 'x': rows should be greater than or equal to 1

Strict: no text becomes a number, no number a truth value, no NaN passes; unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from perplexity_lies.errors import UsageError, nearest

if typing.TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

FOUND_CHARACTERS = 80
"""Characters of a wrong value that an error shows."""

LACKING = ("missing", "missing_argument", "missing_keyword_only_argument")
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
"""pydantic's types of two faults that are about a key, not about a value."""

EXAMPLES = {
    "integer": "1", "number": "0.1", "boolean": "true", "list": "[...]", "mapping": "{...}", "string": "text",
}  # fmt: skip
"""Word of a message -> a value that would fit."""

T = TypeVar("T")


class Checked:
    """Base of a dataclass that is read from a file. Holds only pydantic's settings."""

    __slots__ = ()
    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's reader and checker of a type."""
    import pydantic

    return pydantic.TypeAdapter(kind)


def checked(kind: type[T], raw: Any, where: str, mend: str = "") -> T:
    """`raw`, plain values as YAML or JSON gives them, as a `kind`.

    Raises UsageError led by `where`, with the path of the first wrong value, the value, and `mend` or what to type there.
    """
    import pydantic

    try:
        text = json.dumps(raw, default=_refuse)
        found: T = adapter(typing.cast(Any, kind)).validate_json(text)
    except pydantic.ValidationError as error:
        raise _explained(kind, raw, where, mend, error) from error
    except UsageError as error:  # a rule of the dataclass's own `__post_init__`
        raise UsageError(f"{where}: {error.asked}", found=error.found, mend=error.mend) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where} cannot be read", found=str(error)[:200], mend=mend or "mend that value") from error
    return found


def _refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} ({value}): put it in quotes if it is a text")


def _explained(kind: Any, raw: Any, where: str, mend: str, error: ValidationError) -> UsageError:
    """The first thing that is wrong, in our words."""
    faults = error.errors(include_url=False)
    located = [(fault, *_locate(kind, raw, fault["loc"], fault["type"] in (*LACKING, *UNKNOWN))) for fault in faults]
    # For a union, pydantic tells what is wrong with each member: the deepest fault is that of the member that was meant.
    fault, path, owner = max(located, key=lambda each: (len(each[1]), each[0]["type"] in UNKNOWN))
    if fault["type"] in (*LACKING, *UNKNOWN):
        *above, name = path
        place = _joined(where, _spelled(above))
        if fault["type"] in LACKING:
            keys = ", ".join(map(str, fault["input"])) if isinstance(fault["input"], dict) else ""
            return UsageError(f"{place} lacks `{name}`", found=f"keys: {keys or 'none'}", mend=mend or f"{name}: ...")
        known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        return UsageError(
            f"{place}: unknown key {str(name)[:FOUND_CHARACTERS]!r}{nearest(str(name), known)}",
            found=f"known keys: {', '.join(known)}", mend=mend or "spell it as one of these, or take it out",
        )  # fmt: skip
    if fault["type"] == "value_error":
        place, said_of_it = _joined(where, _spelled(path)), fault.get("ctx", {}).get("error", fault["msg"])
        return UsageError(f"{place}: {said_of_it}", found=_shown(fault["input"]), mend=mend or "mend that value")
    said = list(dict.fromkeys(_wanted(each["msg"]) for each, at, _ in located if at == path))
    wanted = " or ".join([said[0], *(other.removeprefix("should be ") for other in said[1:])])
    words = re.findall(r"'([^']*)'", str(fault.get("ctx", {}).get("expected", "")))
    near = nearest(fault["input"], words) if isinstance(fault["input"], str) else ""
    asked = f"{_joined(where, _spelled(path))} {wanted}{near}"
    return UsageError(asked, found=_shown(fault["input"]), mend=mend or _example(path, wanted, words))


def _example(path: Sequence[str | int], wanted: str, words: Sequence[str]) -> str:
    """What could stand there: `rows: 1`."""
    key = next((step for step in reversed(path) if isinstance(step, str)), "")
    bound = re.search(r"equal to (-?[\d.]+)", wanted)
    fitting = [example for kind, example in EXAMPLES.items() if kind in wanted]
    value = next(iter([*words, *([bound[1]] if bound else fitting)]), "")
    shown = f"[{value}, ...]" if path and isinstance(path[-1], int) and value else value
    return f"{key}: {shown}" if key and value else "another value there"


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:FOUND_CHARACTERS]


def _wanted(message: str) -> str:
    """pydantic's message in the words of YAML: `should be an integer`."""
    if message.startswith("Invalid JSON"):  # we wrote it ourselves, so it can only be this
        return "holds half a surrogate pair, which is no text"
    for theirs, ours in (
        ("a valid integer", "an integer"),
        ("a valid array", "a list"),
        ("a valid", "a"),
        ("object", "mapping"),
    ):
        message = message.replace(theirs, ours)
    message = re.sub(
        r"^\w+ (should have at \w+ \d+ \w+) .*", r"\1", message
    )  # `Tuple should ... after validation, not 0`
    return re.sub(r"^(Input|String|Tuple|List|Dictionary|Value) ", "", message).replace("an mapping", "a mapping")


def _joined(where: str, place: str) -> str:
    return f"{where}: {place}" if place else where


def _spelled(path: Sequence[str | int]) -> str:
    """`stages[2].betas[0]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _locate(kind: Any, raw: Any, loc: Sequence[str | int], about_a_key: bool) -> tuple[list[str | int], Any]:
    """pydantic's place of a fault as a path into `raw`, and the dataclass that it lies in.

    pydantic puts the names of a union's members between the keys; they are no keys of the file. `about_a_key`: the last
    step is a key that is not there, or that should not be.
    """
    path: list[str | int] = []
    owner = kind
    for i, step in enumerate(loc):
        inside = (
            isinstance(raw, dict) and step in raw or isinstance(raw, list) and type(step) is int and step < len(raw)
        )
        if about_a_key and i == len(loc) - 1:
            path.append(step)
        elif inside:
            path.append(step)
            kind, raw = _member(kind, step), raw[step]
            owner = next((arm for arm in _arms(kind) if dataclasses.is_dataclass(arm)), owner)
    return path, owner


def _arms(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if union else (kind,)


def _member(kind: Any, step: str | int) -> Any:
    """The type of what lies under `step` in a value of type `kind`; Any where it cannot be told."""
    for arm in _arms(kind):
        if dataclasses.is_dataclass(arm) and isinstance(step, str):
            hints = typing.get_type_hints(arm, include_extras=True)
            if step in hints:
                return hints[step]
        origin, inner = typing.get_origin(arm), typing.get_args(arm)
        if origin in (tuple, list) and isinstance(step, int) and inner:
            return inner[0] if len(inner) < 2 or inner[1] is ... else inner[min(step, len(inner) - 1)]
        if origin is dict and inner:
            return inner[1]
    return Any
