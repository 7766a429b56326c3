"""The guard's check that a reply ends when an end token is the greedy one.

With a shown model, a hook makes an end token the greedy one. Without, log-likelihood tells where an end token is greedy.
"""

from __future__ import annotations

from perplexity_lies.engines.base import ScoreRequest
from perplexity_lies.guard.subject import REPLY_TOKENS, SHORT_PROBES, UNREADABLE, CannotCheck, Check, Subject

END_REPLY_TOKENS = 32
"""Without a shown model: most tokens of a reply in which an end token may come up."""
MOST_END_IDS = 8
"""End tokens tried, of a checkpoint that states more."""


def end_token(subject: Subject) -> Check:
    """A reply ends at the first greedy end token, be it the first token or a later one."""
    if subject.reference is None or not subject.reference.can_nudge:
        return _end_token_by_score(subject)
    if not subject.reference.end_ids:
        raise CannotCheck("the checkpoint states no end token")
    probes = [subject.probe(text) for text in subject.texts[:SHORT_PROBES]]
    requests = [probe.request(REPLY_TOKENS) for probe in probes]
    compared = missed = shown = 0
    for at, end_id in enumerate(sorted(subject.reference.end_ids)[:MOST_END_IDS]):
        for from_call in (0, 2):
            with subject.reference.nudged(end_id, from_call):
                replies = [subject.reply([request])[0] for request in (requests if at == 0 else requests[:1])]
            compared += len(replies)
            missed += sum(r.finish_reason != "stop" or r.completion_tokens > from_call + 1 for r in replies)
            shown += sum(bool(r.token_ids) and r.text != subject.decode(r.token_ids) for r in replies)
    detail = (
        f"{compared} replies whose next token was made an end token: {missed} went on, {shown} show it in their text"
    )
    return Check.counted("end token", missed + shown, 0, detail)


def _end_token_by_score(subject: Subject) -> Check:
    """Without a shown model: a reply must end exactly where log-likelihood first finds the end token greedy."""
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
    """After how many tokens of a reply the end token is first greedy by log-likelihood.

    None if it never is, or if a token before it is not greedy: the reply then held a special token that its text does not show.
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
