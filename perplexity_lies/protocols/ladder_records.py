"""What the engine answered on a rung of the ladder, as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from perplexity_lies.catalogue.items import Item
from perplexity_lies.digests import sha256_text
from perplexity_lies.extract import open_extractor
from perplexity_lies.extract.base import Extractor, opened_thought
from perplexity_lies.protocols.ranking import is_fragile, ranked_first
from perplexity_lies.record.manifest import Rounding
from perplexity_lies.record.records import ItemRecord, Reading, Status

RANKED_BY = "ranked@1"
DECODED_METRIC = "exact_match"


def readers_of(settings: Any, item: Item) -> list[Extractor]:
    """The headline's extractor, then every other one at hand."""
    lettered = settings.labels == "letters" and bool(item.choices)
    numeric = not item.choices and item.target.replace(",", "").lstrip("-").replace(".", "", 1).isdigit()
    first = "pattern" if settings.extract else "label" if lettered else "number" if numeric else "strict"
    others = ("strict", "last_letter") if lettered else ("strict", "number") if numeric else ("strict",)
    return [open_extractor(name, {"extract": settings.extract}) for name in dict.fromkeys((first, *others))]


def _common(rung: str, task: str, item: Item, target: str, asked: Any) -> dict[str, Any]:
    return {
        "task": task, "subject": item.subject, "item": item.id, "rung": rung, "prompt": asked.prompt,
        "prompt_sha256": sha256_text(asked.prompt), "gold": target, "gold_index": item.gold, "choices": item.choices,
    }  # fmt: skip


def ranked_record(
    rung: str, task: str, item: Item, target: str, asked: Any, settings: Any, answers: Sequence[dict[str, Any]], why: str,
    rounding: Rounding, mass: float | None,
) -> ItemRecord:  # fmt: skip
    """The record of candidates that were ranked by their summed log-likelihood."""
    lost = next((answer for answer in answers if answer.get("error")), None)
    nats = [] if lost or why else [answer["loglikelihood_nats"] for answer in answers]
    first = ranked_first(nats, asked.candidates, "acc") if nats else -1
    status = Status.SCORED if nats else Status.ERRORED if lost and lost["failed"] else Status.REFUSED
    score = float(first == item.gold) if nats else 0.0
    answer = asked.candidates[first] if nats else ""
    reading = Reading(extractor=RANKED_BY, status=status, score=score, metric="acc", answer=answer)
    return ItemRecord(
        **_common(rung, task, item, target, asked),
        readings=(reading,),
        choice_loglikelihoods_nats=tuple(nats),
        choice_is_greedy=tuple(answer["is_greedy"] for answer in answers) if nats else (),
        prompt_tokens=answers[0]["context_tokens"] if answers else 0,
        truncated_prompt_tokens=max((answer["truncated_tokens"] for answer in answers), default=0),
        fragile=bool(nats) and is_fragile(nats, asked.candidates, "acc", rounding.nats),
        error=why or (lost["error"] if lost else ""),
    )


def replied_record(
    rung: str, task: str, item: Item, target: str, asked: Any, settings: Any, answers: Sequence[dict[str, Any]], why: str,
    rounding: Rounding, mass: float | None,
) -> ItemRecord:  # fmt: skip
    """The record of a reply, read by every extractor at hand."""
    reply: dict[str, Any] = answers[0] if answers else {"error": why, "failed": False}
    bare = {
        **_common(rung, task, item, target, asked),
        "label_mass": mass,
        "error": reply["error"],
    }
    readers = readers_of(settings, item)
    if reply["error"]:
        status = Status.ERRORED if reply["failed"] else Status.REFUSED
        lost = [Reading(extractor=own.label, status=status, score=0.0, metric=own.metric) for own in readers]
        return ItemRecord(**bare, readings=tuple(lost))
    margin = reply["smallest_margin"]
    heard = ItemRecord(
        **bare,
        readings=(Reading(extractor=readers[0].label, status=Status.SCORED, score=0.0, metric=DECODED_METRIC),),
        text=reply["text"],
        reply_prefix=opened_thought(asked.sent),
        token_ids=tuple(reply["token_ids"]),
        finish_reason=reply["finish_reason"],
        prompt_tokens=reply["prompt_tokens"],
        completion_tokens=reply["completion_tokens"],
        truncated_prompt_tokens=reply["truncated_tokens"],
        beyond_context_tokens=reply["beyond_context_tokens"],
        fragile=margin is not None and margin <= rounding.margin,
    )
    return dataclasses.replace(heard, readings=tuple(own.read(heard) for own in readers))
