"""What a chat template is given beside the messages: arguments of the run's own, and a clock that stands still.

    settle_template(tokenizer, '{"enable_thinking":false}')

Templates may write today's date (`strftime_now`). A run that goes on tomorrow, or whose two sides were asked on two days, would
then ask other prompts under one name; so the clock shows `CLOCK`, or the moment that the argument `strftime_now` states.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Self

from perplexity_lies.digests import canonical_json
from perplexity_lies.errors import UsageError

_ONE_AT_A_TIME = threading.RLock()

CLOCK = "2025-01-01T12:00:00"
"""What `strftime_now` tells in every run that states no other moment."""

NOW = "strftime_now"
EXAMPLE = '{"enable_thinking": false}'
TAKEN = (
    "conversation", "messages", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
)  # fmt: skip
"""Names that say how a template is applied, which is not the run's to change."""


def template_args(given: str | Mapping[str, Any] | None, where: str) -> str:
    """Arguments, as JSON or as values, in canonical JSON; empty for none. Raises UsageError led by `where`."""
    if not given:
        return ""
    try:
        found = json.loads(given) if isinstance(given, str) else dict(given)
        text = canonical_json(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON", found=str(error)[:200], mend=EXAMPLE) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) and name.isidentifier() for name in found):
        raise UsageError(f"{where} must map names to values", found=text[:80], mend=EXAMPLE)
    for name in TAKEN:
        if name in found:
            raise UsageError(f"{where} cannot set {name!r}", found=text[:80], mend=EXAMPLE)
    if NOW in found:
        try:
            datetime.fromisoformat(found[NOW])
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{where}: {NOW!r} is the moment that templates are told", found=repr(found[NOW])[:80],
                mend=f'{{"{NOW}": "{CLOCK}"}}',
            ) from error  # fmt: skip
    return text if found else ""


def both_args(suite: str, option: str) -> str:
    """A suite's arguments with those of an option over them, in canonical JSON."""
    whole = {**json.loads(suite or "{}"), **json.loads(option or "{}")}
    return canonical_json(whole) if whole else ""


def _text(tokenizer: Any) -> str:
    """The checkpoint's templates as one text."""
    found = getattr(tokenizer, "chat_template", None) or ""
    return found if isinstance(found, str) else canonical_json(found)


@contextlib.contextmanager
def _standing(moment: datetime) -> Iterator[None]:
    """The clock of transformers' templates, which takes no other one as an argument, shows `moment`."""

    class Standing(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Self:
            return cls.fromisoformat(moment.isoformat())

    from transformers.utils import chat_template_utils

    with _ONE_AT_A_TIME:
        real = chat_template_utils.datetime
        chat_template_utils.datetime = Standing
        try:
            yield
        finally:
            chat_template_utils.datetime = real


def settle_template(tokenizer: Any, arguments: str) -> None:
    """Let the tokenizer's template see the arguments (canonical JSON) and the standing clock, whoever applies it."""
    given = json.loads(arguments or "{}")
    moment = datetime.fromisoformat(given.pop(NOW, CLOCK))
    stock = tokenizer.apply_chat_template
    if NOW not in _text(tokenizer) and not given:
        return

    @functools.wraps(stock)
    def settled(*asked: Any, **more: Any) -> Any:
        with _standing(moment):
            return stock(*asked, **{**given, **more})

    tokenizer.apply_chat_template = settled


def template_facts(tokenizer: Any, arguments: str) -> dict[str, str]:
    """For the manifest: what the template was given, where it was given something; arguments that no template names."""
    given = json.loads(arguments or "{}")
    text = _text(tokenizer)
    found = {}
    if given:
        found["chat_template_args"] = arguments
    unused = [name for name in given if tokenizer is not None and name not in text]
    if unused:
        found["chat_template_args_unused"] = ", ".join(unused)
    if NOW in text:
        found["template_clock"] = str(given.get(NOW, CLOCK))
    return found
