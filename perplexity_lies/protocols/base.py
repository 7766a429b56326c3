"""What every rung works with: the context of a run, the way of answers into the journal, the name of an item."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jinja2

from perplexity_lies.catalogue.items import Item, item_of
from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.catalogue.sources import LibraryItems
from perplexity_lies.catalogue.tasks import RungSettings, Suite
from perplexity_lies.digests import canonical_json, sha256_text
from perplexity_lies.engines.base import Engine, Finished
from perplexity_lies.errors import UsageError, from_table
from perplexity_lies.progress import Reporter
from perplexity_lies.record.journal import Journal
from perplexity_lies.record.manifest import Rounding
from perplexity_lies.record.records import ItemRecord
from perplexity_lies.sandbox import Sandbox
from perplexity_lies.templates import strangers

ITEM_NAME_CHARACTERS = 48
"""A longer item text is named by its hash."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a rung asks in."""

    mirror: Mirror
    limit: int | None
    """First items of each task; None for all."""
    journal: Journal
    """What the engine has answered already on this rung."""
    log: Path
    """Where the libraries' output goes."""
    reporter: Reporter
    rounding: Rounding = Rounding()
    sandbox: Sandbox | None = None
    """What runs code in replies; None where it is not to be run."""
    rungs: tuple[str, ...] = ()
    """Rungs that are asked in this call, so that those that share their answers can be asked together."""


class Keyed(Protocol):
    """A request or a result of an engine."""

    @property
    def key(self) -> str: ...


def through_door(
    door: str, kind: type[RungSettings], engine: Engine, suite: Suite, context: Context
) -> list[ItemRecord]:
    """What the function that `door` names (`module:function`) makes of the tasks with the rung; it is imported now.

    Raises MissingError, naming the extra, when its library is absent.
    """
    with context.reporter.step(f"starting {kind.rung}"):
        function = from_table(door, f"the rung {kind.rung!r} cannot be asked", "eval")
    narrowed = replace(suite, tasks=suite.tasks_on(kind.rung))
    records: list[ItemRecord] = function(kind, engine, narrowed, context)
    return records


def answer_all(
    context: Context,
    title: str,
    requests: Sequence[Keyed],
    run: Callable[[Sequence[Any], Finished], Iterator[list[Any]]],
) -> None:
    """Put every request's result into the journal, batch by batch, with progress."""
    keys = {request.key for request in requests}
    done = sum(map(context.journal.finished, keys))
    if done == len(keys):
        return
    with context.reporter.step(title, len(keys), done) as advance:
        for batch in run(requests, context.journal.finished):
            fresh = sum(not context.journal.finished(result.key) for result in batch)
            context.journal.add(batch)
            advance(fresh)


def refuse_scale(task: str, rung: str, metric: str, score: float) -> None:
    """Raises UsageError for a score that is no share: gaps are differences of shares."""
    if not 0 <= score <= 1:
        raise UsageError(
            f"task {task!r}, {rung}: the metric {metric!r} is not a score between 0 and 1",
            found=f"{score:g} for one item",
            mend="another `metric:`, such as acc or exact_match",
        )


def render_template(template: str, fields: Mapping[str, Any], where: str) -> str:
    """A suite's Jinja template over an item's fields. Raises UsageError for a template that does not fit them."""
    try:
        return strangers().from_string(template).render(**fields)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"{where}: the template {template!r} does not fit the item",
            found=str(error),
            mend=f"fields there: {', '.join(fields)}",
        ) from error


def fill(template: str, fields: Mapping[str, Any], where: str) -> str:
    """The rendered template with single spaces and no line breaks. Raises UsageError as `render_template`."""
    return " ".join(render_template(template, fields, where).split())


def item_name(template: str, fields: Mapping[str, Any], where: str) -> str:
    """The item's name: the filled template, or its hash where it is long. Raises UsageError for an empty one."""
    text = fill(template, fields, where)
    if not text:
        raise UsageError(
            f"{where}: the template {template!r} renders to an empty string",
            found="an item without a name",
            mend=f"fields there: {', '.join(fields)}",
        )
    return text if len(text) <= ITEM_NAME_CHARACTERS else f"sha256-{sha256_text(text)[:16]}"


def library_item(
    source: LibraryItems, fields: Mapping[str, Any], *, question: str, choices: Sequence[str], gold: int, target: str
) -> Item:
    """An item out of a library's benchmark; `fields` are what the templates of the source may use.

    Raises UsageError for values that are no item.
    """
    where, whole = source.title, canonical_json([question, list(choices)])
    raw = {
        "id": item_name(source.id, fields, where) if source.id else f"sha256-{sha256_text(whole)[:16]}",
        "question": question,
        "choices": list(choices),
        "gold": gold,
        "target": target.strip(),
        "subject": fill(source.subject, fields, where) if source.subject else "",
    }
    return item_of(raw, f"{where}, item {raw['id']!r}")
