"""The guard's check of stop strings: a reply ends before the first of them and not before, wherever it lies in the tokens.

Greedy replies are asked for again with stop strings taken out of their own text, which begin and end inside tokens. With a shown
model, a hook also makes a special token the greedy one: it is no part of a reply's text and may still be, or end, a stop string.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perplexity_lies.engines.base import GenerateRequest, GenerateResult
from perplexity_lies.guard.subject import UNREADABLE, CannotCheck, Check, Probe, Subject

if TYPE_CHECKING:
    from perplexity_lies.guard.reference import Reference

STOP_REPLY_TOKENS = 48
STOP_TEXTS = 2
STOP_PLACES = (2, 5, 17, 40)
"""Tokens of a reply after which a stop string ends."""
SPECIAL_PLACE = 2
"""Tokens of a reply before a special token is made the greedy one."""
SPECIAL_ROOM = 3
"""Tokens that a reply may go on after it."""


def stop_strings(subject: Subject) -> Check:
    """A reply ends before the first of its stop strings, which begin and end inside tokens, and not before."""
    engine, reference = subject.engine, subject.reference
    probes = [subject.probe(text) for text in subject.texts[:STOP_TEXTS]]
    room = min(STOP_REPLY_TOKENS, engine.context_tokens - max(len(probe.ids) for probe in probes) - 1)
    with _without_ends(reference):
        requests = []
        replies = subject.reply([probe.request(room) for probe in probes])
        for probe, whole in zip(probes, replies, strict=True):
            stops = _stops(subject, whole)
            requests += [_stopped(probe.request(room), (stop,)) for stop in stops]
            if len(stops) > 1:
                requests.append(_stopped(probe.request(room), (stops[-1], "\u2603", stops[0])))
        if not requests:
            raise CannotCheck("no reply has a text to stop at")
        replies = subject.reply(requests)
        special = list(_special_stops(subject, probes[0], room))
    faults = [
        fault for request, reply in zip(requests, replies, strict=True) if (fault := _ran_on(subject, request, reply))
    ]
    faults += filter(None, special)
    met = sum(reply.finish_reason == "stop_string" for reply in replies)
    detail = (
        f"{len(requests)} replies with stop strings out of {len(probes)} greedy replies: {met} stopped; "
        f"{len(special)} with stop strings that hold a special token"
    )
    if faults:
        detail += f"; {len(faults)} wrongly: {faults[0]}"
    if not met and not faults:
        raise CannotCheck("no reply came to its stop string again")
    return Check.counted("stop strings", len(faults), subject.tolerance.replies * len(requests), detail)


def _special_stops(subject: Subject, probe: Probe, room: int) -> Iterator[str]:
    """For each stop string that holds a special token, what is wrong about the reply; empty where nothing is."""
    reference, special = subject.reference, _special_token(subject)
    if reference is None or special is None or room < SPECIAL_PLACE + SPECIAL_ROOM:
        return

    def asked(*stop: str) -> GenerateResult:
        with reference.nudged(special, SPECIAL_PLACE):
            return subject.reply([_stopped(probe.request(SPECIAL_PLACE + SPECIAL_ROOM), stop)])[0]

    ids = asked().token_ids[: SPECIAL_PLACE + 1]
    before, spelled = subject.decode(ids[:-1]), subject.decode([special], special_tokens=True)
    if ids[SPECIAL_PLACE:] != (special,) or special in ids[:SPECIAL_PLACE] or not before or UNREADABLE in before:
        return
    whole = subject.decode(ids, special_tokens=True)
    stops = {spelled: before}
    if whole.endswith(before[-1] + spelled):
        stops[before[-1] + spelled] = before[:-1]
    for stop, text in stops.items():
        reply = asked(stop)
        if (reply.finish_reason, reply.completion_tokens) != ("stop_string", len(ids)):
            yield f"a stop string with the special token {spelled!r} did not end a reply"
        else:
            yield "" if reply.text == text else f"a reply was not cut at the special token {spelled!r}"


def _special_token(subject: Subject) -> int | None:
    """A special token that ends no reply by itself and has a text; None without one."""
    reference, tokenizer = subject.reference, subject.engine.tokenizer
    if reference is None or not reference.can_nudge:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    rows = reference.rows
    return next(
        (
            number
            for number in sorted(special - reference.end_ids)
            if number < rows and not subject.decode([number]) and subject.decode([number], special_tokens=True).strip()
        ),
        None,
    )


def _without_ends(reference: Reference | None) -> contextlib.AbstractContextManager[None]:
    if reference is None:
        return contextlib.nullcontext()
    from perplexity_lies.guard.watch import kept_out

    return kept_out(reference, reference.end_ids)


def _stopped(request: GenerateRequest, stop: tuple[str, ...]) -> GenerateRequest:
    return GenerateRequest(
        prompt=request.prompt, add_special_tokens=request.add_special_tokens, max_new_tokens=request.max_new_tokens,
        max_prompt_tokens=request.max_prompt_tokens, stop=stop,
    )  # fmt: skip


def _stops(subject: Subject, whole: GenerateResult) -> list[str]:
    """Stop strings of two to three tokens out of a reply, each ending in another place."""
    found = []
    for place in STOP_PLACES:
        if whole.token_ids:
            before, text = subject.decode(whole.token_ids[: max(0, place - 2)]), subject.decode(whole.token_ids[:place])
            stop = text[len(before) :] if text.startswith(before) else ""
            stop = stop[1:] if len(stop) > 2 else stop
        else:
            stop = whole.text[4 * place : 4 * place + 3]
        if stop.strip() and UNREADABLE not in stop and stop not in found and stop in whole.text:
            found.append(stop)
    return found


def _ran_on(subject: Subject, request: GenerateRequest, reply: GenerateResult) -> str:
    """What is wrong about a reply with stop strings, by its own tokens; empty where nothing is."""
    if any(stop in reply.text for stop in request.stop):
        return "the stop string stands in the text"
    if not reply.token_ids:
        return ""
    text, spelled = (subject.decode(reply.token_ids, special_tokens=kept) for kept in (False, True))
    first = _first(text, request.stop)
    if spelled != text and _first(spelled, request.stop) is not None and reply.finish_reason == "stop_string":
        return ""  # a stop string may stand in a special token; where the reply is then cut is not checked
    if first is None:
        stopped_early = reply.finish_reason == "stop_string" or len(reply.token_ids) < request.max_new_tokens
        return f"ended after {len(reply.token_ids)} tokens without its stop string" if stopped_early else ""
    if _first(subject.decode(reply.token_ids[:-1]), request.stop) is not None:
        return "went on after its stop string"
    if reply.text != text[:first]:
        return "not cut at its stop string"
    return "" if reply.finish_reason == "stop_string" else f"finish reason {reply.finish_reason!r}"


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of some strings begins in a text."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
