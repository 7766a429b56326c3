"""The guard's check that a reply ends where its end token is the greedy one.

Where the model is seen, an end token is made the greedy one; elsewhere log-likelihood tells where it is. Knows nothing of the
other checks.
"""

from __future__ import annotations

from perplexity_lies.engines.base import ScoreRequest
from perplexity_lies.guard.subject import REPLY_TOKENS, SHORT_PROBES, UNREADABLE, CannotCheck, Check, Subject

END_REPLY_TOKENS = 32
"""Tokens within which an end token is waited for, of an engine that does not show its model."""
MOST_END_IDS = 3
"""End tokens that are tried, of a checkpoint that states many."""


def end_token(subject: Subject) -> Check:
    """A reply ends at the first end token that is its greedy one, at the first place and later."""
    if subject.reference is None or not subject.reference.can_nudge:
        return _end_token_by_score(subject)
    if not subject.reference.end_ids:
        raise CannotCheck("the checkpoint states no end token")
    probes = [subject.probe(text) for text in subject.texts[:SHORT_PROBES]]
    requests = [probe.request(REPLY_TOKENS) for probe in probes]
    asked = missed = 0
    for end_id in sorted(subject.reference.end_ids)[:MOST_END_IDS]:
        for from_call in (0, 2):
            with subject.reference.nudged(end_id, from_call):
                replies = [subject.reply([request])[0] for request in requests]
            asked += len(replies)
            missed += sum(r.finish_reason != "stop" or r.completion_tokens > from_call + 1 for r in replies)
    detail = f"{asked} replies whose next token was made an end token: {missed} went on"
    return Check.counted("end token", missed, 0, detail)


def _end_token_by_score(subject: Subject) -> Check:
    """Without the model: wherever log-likelihood finds the end token greedy, the reply must have ended, and only there."""
    end_id = getattr(subject.engine.tokenizer, "eos_token_id", None)
    if end_id is None:
        raise CannotCheck("no tokenizer here states an end token")
    met: list[bool] = []
    for probe in [subject.probe(text) for text in subject.texts]:
        reply = subject.reply_alone(probe.request(END_REPLY_TOKENS))
        whole = subject.encode(probe.prompt + reply.text, probe.add_special_tokens)
        if probe.max_prompt_tokens or whole[: len(probe.ids)] != probe.ids or UNREADABLE in reply.text:
            continue
        said = reply.completion_tokens - (reply.finish_reason == "stop")
        end = _first_end(subject, whole, len(probe.ids), end_id)
        if end is not None:
            met.append(end == said and (reply.finish_reason == "stop" or end == END_REPLY_TOKENS))
    if not met:
        raise CannotCheck(f"this engine does not show its model, and no reply ends within {END_REPLY_TOKENS} tokens")
    wrong = met.count(False)
    detail = f"{len(met)} replies come to an end token: {wrong} do not end where log-likelihood finds it greedy"
    return Check.counted("end token", wrong, subject.tolerance.replies * len(met), detail)


def _first_end(subject: Subject, whole: tuple[int, ...], prompt_tokens: int, end_id: int) -> int | None:
    """After how many tokens of a reply the end token is greedy by log-likelihood.

    None where it never is, or where the tokens of the text cannot be those of the reply: one of them is not greedy, since
    another, special one, which no text shows, stood before it.
    """
    ends = [
        ScoreRequest(context_ids=whole[:at], continuation_ids=(end_id,)) for at in range(prompt_tokens, len(whole) + 1)
    ]
    goes_on = [
        ScoreRequest(context_ids=whole[:at], continuation_ids=(whole[at],)) for at in range(prompt_tokens, len(whole))
    ]
    found = subject.score([*ends, *goes_on])
    for at, end in enumerate(found[: len(ends)]):
        if end.is_greedy:
            return at
        if at < len(goes_on) and not found[len(ends) + at].is_greedy:
            return None
    return None
