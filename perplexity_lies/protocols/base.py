"""What both protocols share: what they are given, how answers reach the journal, how an item is named.

Knows nothing of lm-eval or evalscope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.sandbox

from perplexity_lies.catalogue.mirror import Mirror
from perplexity_lies.engines.base import Finished
from perplexity_lies.errors import CheckpointError, UsageError
from perplexity_lies.progress import Reporter
from perplexity_lies.record.records import ItemRecord, sha256_text
from perplexity_lies.record.store import Journal

ITEM_NAME_CHARACTERS = 48
"""A longer item text is named by its hash."""

_TEMPLATES = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the engine's rounding may do, as the artifact guard took it for this run."""

    nats: float = 1e-4
    """To a continuation's log-likelihood."""
    margin: float = 1e-3
    """To the distance between two logits."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a protocol runs in."""

    mirror: Mirror
    limit: int | None
    """First items of each task; None for all."""
    journal: Journal
    log: Path
    reporter: Reporter
    rounding: Rounding = Rounding()


class Keyed(Protocol):
    """A request or a result."""

    @property
    def key(self) -> str: ...


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
            context.journal.add([plain(result) for result in batch])
            advance(fresh)


def plain(result: Any) -> dict[str, Any]:
    """A result for the journal. Raises CheckpointError for one that is not a number."""
    values = asdict(result)
    if any(isinstance(value, float) and not math.isfinite(value) for value in values.values()):
        raise CheckpointError(
            "the checkpoint's log-likelihoods are not numbers",
            found=f"a sum of {values.get('loglikelihood_nats')} nats",
            mend=["--dtype float32 or bfloat16 (float16 overflows)", "check that its weights are whole"],
        )
    return values


def refuse_scale(task: str, protocol: str, metric: str, score: float) -> None:
    """Raises UsageError for a score that is no share: gaps are differences of shares."""
    if not 0 <= score <= 1:
        raise UsageError(
            f"task {task!r}, {protocol}: the metric {metric!r} is not a score between 0 and 1",
            found=f"{score:g} for one item",
            mend="another `metric:`, such as acc or exact_match",
        )


def refuse_twins(records: Iterable[ItemRecord], task_item: Mapping[str, str]) -> None:
    """Raise UsageError when two items of a task bear one name; `task_item` is each task's template."""
    seen: set[tuple[str, str, int]] = set()
    for record in records:
        place = (record.task, record.item, record.seed)
        if place in seen:
            raise UsageError(
                f"task {record.task!r}, {record.protocol}: two items are named {record.item!r}",
                found=f"item: {task_item[record.task]!r}",
                mend="put another field of the item into `item:`",
            )
        seen.add(place)


def fill(template: str, fields: Mapping[str, Any], where: str) -> str:
    """A suite's Jinja template over an item's fields. Raises UsageError for a template that does not fit them."""
    try:
        return " ".join(_TEMPLATES.from_string(template).render(**fields).split())
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"{where}: the template {template!r} does not fit the item",
            found=str(error),
            mend=f"fields there: {', '.join(fields)}",
        ) from error


def item_name(template: str, fields: Mapping[str, Any], where: str) -> str:
    """The item's name: the filled template, or its hash where it is long."""
    text = fill(template, fields, where)
    if not text:
        raise UsageError(
            f"{where}: the template {template!r} names an item by nothing",
            found="it comes out empty",
            mend=f"fields there: {', '.join(fields)}",
        )
    return text if len(text) <= ITEM_NAME_CHARACTERS else f"sha256-{sha256_text(text)[:16]}"
