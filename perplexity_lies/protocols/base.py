"""What both protocols share: what they are given, how answers reach the journal, how an item is named.

Knows nothing of lm-eval or evalscope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.sandbox

from perplexity_lies.engines.base import Finished
from perplexity_lies.errors import UsageError
from perplexity_lies.progress import Reporter
from perplexity_lies.records import sha256_text
from perplexity_lies.store import Journal
from perplexity_lies.suite import Mirror

ITEM_NAME_CHARACTERS = 48
"""A longer item text is named by its hash."""

_TEMPLATES = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True, slots=True)
class Context:
    """What a protocol runs in."""

    mirror: Mirror
    limit: int | None
    """First items of each task; None for all."""
    journal: Journal
    log: Path
    reporter: Reporter


class Keyed(Protocol):
    """A request or a result."""

    @property
    def key(self) -> str: ...


def answer_all(
    context: Context, title: str, requests: Sequence[Keyed], run: Callable[[Sequence[Any], Finished], Iterator[list[Any]]]
) -> None:
    """Put every request's result into the journal, batch by batch, with progress."""
    keys = {request.key for request in requests}
    done = sum(map(context.journal.finished, keys))
    if done == len(keys):
        return
    with context.reporter.step(title, len(keys), done) as advance:
        for batch in run(requests, context.journal.finished):
            fresh = sum(not context.journal.finished(result.key) for result in batch)
            context.journal.add([asdict(result) for result in batch])
            advance(fresh)


def fill(template: str, fields: Mapping[str, Any], where: str) -> str:
    """A suite's Jinja template over an item's fields. Raises UsageError for a template that does not fit them."""
    try:
        return " ".join(_TEMPLATES.from_string(template).render(**fields).split())
    except jinja2.TemplateError as error:
        raise UsageError(
            f"{where}: the template {template!r} does not fit the item", found=str(error), mend=f"fields there: {', '.join(fields)}"
        ) from error


def item_name(template: str, fields: Mapping[str, Any], where: str) -> str:
    """The item's name: the filled template, or its hash where it is long."""
    text = fill(template, fields, where)
    if not text:
        raise UsageError(f"{where}: the template {template!r} names an item by nothing", mend=f"fields there: {', '.join(fields)}")
    return text if len(text) <= ITEM_NAME_CHARACTERS else f"sha256-{sha256_text(text)[:16]}"
