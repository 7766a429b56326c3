"""The guard's checks. Each asks an engine one question in two ways that must agree, and returns a `Check`.

A check is a function of a `Subject`. It measures a difference in nats or counts what went wrong, and raises CannotCheck where
it cannot be made of this engine. To add one, write the function and list it in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from perplexity_lies.engines.base import GenerateRequest, GenerateResult, ScoreRequest
from perplexity_lies.guard.as_a_run import as_a_run, long_replies, truncation
from perplexity_lies.guard.ends import end_token
from perplexity_lies.guard.question import one_question, times_over
from perplexity_lies.guard.sampling import sampling
from perplexity_lies.guard.stops import stop_strings
from perplexity_lies.guard.subject import (
    CONTINUATION_TOKENS,
    UNREADABLE,
    CannotCheck,
    Check,
    Probe,
    Subject,
    user,
)
from perplexity_lies.guard.typical import own_cache, typical

FINGERPRINT_TOKENS = 32
"""Longest text of the fingerprint."""
PADDED_TOKENS = (CONTINUATION_TOKENS + 1, 256, 20)
"""Most tokens of the rows of a batch of unequal lengths; the first is so short that a pad before it would show."""


def _said(result: GenerateResult) -> tuple[str, str, int]:
    """What two equal replies have in common: text, finish reason, number of tokens."""
    return result.text, result.finish_reason, result.completion_tokens


def _split(ids: Sequence[int], tokens: int = CONTINUATION_TOKENS) -> ScoreRequest:
    """Score the last `tokens` of `ids` after the others."""
    return ScoreRequest(context_ids=tuple(ids[:-tokens]), continuation_ids=tuple(ids[-tokens:]))


def _sure(probes: Sequence[Probe], least: int = 0) -> list[Probe]:
    """Probes with a sure first token. Raises CannotCheck if there are fewer than `least`."""
    sure = [probe for probe in probes if probe.sure]
    if len(sure) < least:
        raise CannotCheck(f"{len(sure)} of {len(probes)} probes have a greedy reply that rounding cannot move")
    return sure


def _worst(subject: Subject, requests: Sequence[ScoreRequest]) -> float:
    """Largest difference in nats between requests scored together and alone; 0 for an engine that cannot score."""
    if subject.engine.why_no_score:
        return 0.0
    alone = [subject.score_alone(request).loglikelihood_nats for request in requests]
    together = [result.loglikelihood_nats for result in subject.score(requests)]
    return max(abs(a - b) for a, b in zip(alone, together, strict=True))


def _differing(subject: Subject, probes: Sequence[Probe]) -> int:
    """How many replies differ between generated together and alone."""
    alone = [_said(subject.reply_alone(probe.request())) for probe in probes]
    together = map(_said, subject.reply([probe.request() for probe in probes]))
    return sum(a != b for a, b in zip(alone, together, strict=True))


def _within(subject: Subject, differing: int, of: int) -> bool:
    return differing <= subject.tolerance.replies * of


def _nats(name: str, subject: Subject, worst: float, detail: str, *, also: bool = True) -> Check:
    """A check that measures nats and passes within tolerance if `also` holds."""
    bar = subject.tolerance.nats
    return Check(name=name, passed=worst <= bar and also, measured=worst, tolerance=bar, detail=detail)


def batch_size(subject: Subject) -> Check:
    """Rows of one length, together and alone: a row's numbers do not depend on the rest of the batch."""
    rows = [subject.encoded(text) for text in subject.texts]
    length = min(map(len, rows))
    prompts = [subject.probe(text) for text in subject.texts]
    shortest = min(len(probe.ids) for probe in prompts)
    probes = _sure([subject.probe(text, shortest) for text in subject.texts])
    worst = _worst(subject, [_split(row[-length:]) for row in rows])
    differing = _differing(subject, probes)
    detail = (
        f"{len(rows)} continuations of {length} tokens scored together and alone: up to {worst:.2g} nats apart; "
        f"{differing} of {len(probes)} replies differ"
    )
    return _nats("batch size", subject, worst, detail, also=_within(subject, differing, len(probes)))


def padding(subject: Subject) -> Check:
    """Rows of unequal length, together and alone: padding changes nothing."""
    lengths = [PADDED_TOKENS[at % len(PADDED_TOKENS)] for at in range(len(subject.texts))]
    probes = _sure([subject.probe(text, most) for text, most in zip(subject.texts, lengths, strict=True)])
    rows = [subject.encoded(text)[-most:] for text, most in zip(subject.texts, lengths, strict=True)]
    worst = _worst(subject, [_split(row) for row in rows])
    differing = _differing(subject, probes)
    detail = (
        f"rows of {min(map(len, rows))} to {max(map(len, rows))} tokens scored together and alone: up to {worst:.2g} nats apart; "
        f"{differing} of {len(probes)} replies differ"
    )
    if subject.reference is not None:
        together = subject.reference.logits(rows)
        alone = [subject.reference.logits([row])[0] for row in rows]
        padded = max(nats for a, b in zip(alone, together, strict=True) for nats in subject.reference.apart_nats(a, b))
        detail += f"; a plain forward pass padded on the right: up to {padded:.2g} nats"
        worst = max(worst, padded)
    return _nats("padding", subject, worst, detail, also=_within(subject, differing, len(probes)))


def shared_prefixes(subject: Subject) -> Check:
    """Continuations of shared prefixes, together (shared) and alone (not shared): forking copies the whole state."""
    requests = []
    for item, text in zip(subject.items, subject.texts, strict=False):
        context, tail = subject.encoded(item), subject.encoded(text)
        endings = (tail[-1:], tail[-CONTINUATION_TOKENS:], tail[-CONTINUATION_TOKENS:][:2])
        requests += [ScoreRequest(context_ids=context, continuation_ids=ending) for ending in endings]
    worst = _worst(subject, requests)
    detail = f"{len(requests)} continuations below one header: up to {worst:.2g} nats from scored alone"
    if subject.reference is None or not subject.tolerance.cached_median:
        return _nats("shared prefixes", subject, worst, detail)
    found = subject.score(requests)
    own = [subject.reference.score(*_pair(request)).nats for request in requests]
    measured, bar, how = typical(subject, [[abs(a.loglikelihood_nats - b)] for a, b in zip(found, own, strict=True)])
    detail += f"; {how} {measured:.2g} nats from full forward passes (at most {bar:.2g})"
    return _nats("shared prefixes", subject, worst, detail, also=measured <= bar)


def prompt_isolation(subject: Subject) -> Check:
    """Prompts with one beginning, together, in reverse and alone: none continues from another's state."""
    probes = _sure([subject.probe(item, chat=False) for item in subject.items], 2)
    alone = [_said(subject.reply_alone(probe.request())) for probe in probes]
    differing = _differing(subject, probes) + _differing(subject, probes[::-1])
    detail = f"{len(probes)} prompts below one header, together, in reverse and alone: {differing} replies differ"
    compared = 2 * len(probes)
    if subject.reference is not None:
        expected = [subject.expected(probe) for probe in probes]
        strange = sum(a != b for a, b in zip(alone, expected, strict=True))
        differing, compared = differing + strange, compared + len(probes)
        detail += f", {strange} from a full forward pass"
    return Check.counted("prompt isolation", differing, subject.tolerance.replies * compared, detail)


def cached_against_full(subject: Subject) -> Check:
    """The model's own cache, token by token, and the engine's greedy replies agree with full forward passes."""
    if subject.reference is None:
        raise CannotCheck("this engine does not show its model")
    apart = subject.once("own cache", lambda: own_cache(subject))
    tolerance = subject.tolerance
    worst = median(apart) if tolerance.cached_median else max(apart)
    probes = _sure([subject.probe(text) for text in subject.texts], 1)
    said = [_said(subject.reply_alone(probe.request())) for probe in probes]
    differing = sum(a != subject.expected(probe) for a, probe in zip(said, probes, strict=True))
    sure = sum(probe.sure for probe in probes)
    unused = subject.reference.why_not_cached
    cache = (
        f"the engine runs no single token from the model's cache ({unused})"
        if unused
        else f"the model's cache token by token: {'in the median' if tolerance.cached_median else 'up to'} {worst:.2g} nats "
        "from a full forward pass"
    )
    detail = f"{cache}; {differing} of {len(probes)} greedy replies ({sure} sure tokens) differ"
    passed = worst <= tolerance.cached_nats and not differing
    return Check(
        name="cached against full", passed=passed, measured=worst, tolerance=tolerance.cached_nats, detail=detail
    )


def scored_position(subject: Subject) -> Check:
    """Log-likelihoods and greedy flags agree with a full forward pass over each row."""
    if subject.reference is None:
        raise CannotCheck("this engine does not show its model")
    requests = [_split(subject.encoded(text), n) for text in subject.texts for n in (1, CONTINUATION_TOKENS)]
    probes = _sure([subject.probe(text) for text in subject.texts])
    requests += [
        ScoreRequest(context_ids=probe.ids, continuation_ids=probe.greedy.ids[: probe.sure])
        for probe in probes
        if probe.greedy
    ]
    worst, turned = 0.0, 0
    for request, found in zip(requests, subject.score(requests), strict=True):
        own = subject.reference.score(request.context_ids, request.continuation_ids)
        worst = max(worst, abs(found.loglikelihood_nats - own.nats))
        turned += found.is_greedy != own.is_greedy and own.margin > subject.tolerance.margin
    detail = (
        f"{len(requests)} continuations: up to {worst:.2g} nats from the sum over a full forward pass, "
        f"{turned} greedy flags turned"
    )
    return _nats("scored position", subject, worst, detail, also=not turned)


def restart(subject: Subject) -> Check:
    """A reply cut in the middle and appended to its prompt continues as it did before."""
    compared = differing = 0
    for probe in _sure([subject.probe(text) for text in subject.texts], 1):
        whole = subject.reply_alone(probe.request())
        for cut in range(1, probe.sure):
            head = subject.reply_alone(probe.request(cut))
            if not _reads_back(subject, probe, head, cut):
                continue
            again = GenerateRequest(
                prompt=probe.prompt + head.text,
                add_special_tokens=probe.add_special_tokens,
                max_new_tokens=probe.sure - cut,
            )
            compared += 1
            differing += _bare(head.text + subject.reply_alone(again).text) != _bare(whole.text)
            if cut >= 2:
                break
    if not compared:
        raise CannotCheck("no reply's text reads back as the tokens that it was made of")
    detail = f"{compared} replies cut in the middle and begun again: {differing} go on otherwise"
    return Check.counted("restart", differing, subject.tolerance.replies * compared, detail)


def _bare(text: str) -> str:
    """The text without white space: decoding a tail may drop or add a first space."""
    return "".join(text.split())


def _reads_back(subject: Subject, probe: Probe, head: GenerateResult, tokens: int) -> bool:
    """Whether prompt and reply, joined as text, encode to the tokens that they were."""
    if (
        probe.max_prompt_tokens
        or UNREADABLE in head.text
        or head.completion_tokens != tokens
        or head.finish_reason != "length"
    ):
        return False
    ids = subject.encode(probe.prompt + head.text, probe.add_special_tokens)
    if probe.greedy is not None:
        return ids == (*probe.ids, *probe.greedy.ids[:tokens])
    return ids[: len(probe.ids)] == probe.ids and len(ids) == len(probe.ids) + tokens


def negative_control(subject: Subject) -> Check:
    """Scored as LAMBADA is: a continuation is greedy by log-likelihood exactly when greedy generation writes it."""
    asked: dict[str, tuple[ScoreRequest, GenerateRequest]] = {}
    for probe in _sure([subject.probe(text) for text in (*subject.texts, *subject.items)], 1):
        for continuation in _continuations(subject, probe):
            request = ScoreRequest(context_ids=probe.ids, continuation_ids=continuation)
            asked.setdefault(request.key, (request, probe.request(len(continuation))))
    scored = subject.score([request for request, _ in asked.values()])
    distinct = list({reply.key: reply for _, reply in asked.values()}.values())
    written = dict(zip((reply.key for reply in distinct), subject.reply(distinct), strict=True))
    compared = said_greedy = disagree = 0
    cases = {True: 0, False: 0}
    for (request, reply), found in zip(asked.values(), scored, strict=True):
        text, meant = written[reply.key].text, subject.decode(request.continuation_ids)
        flag, said = found.is_greedy, text == meant
        if said and not flag and (UNREADABLE in meant or not meant):
            continue
        compared, said_greedy, disagree = compared + 1, said_greedy + (said or flag), disagree + (said != flag)
        cases[flag] += 1
    if not all(cases.values()) and not disagree:
        raise CannotCheck(f"{cases[True]} of {compared} continuations are greedy: nothing is told apart")
    detail = f"{compared} continuations, {cases[True]} of them greedy by log-likelihood: generation says otherwise of {disagree}"
    return Check.counted("negative control", disagree, subject.tolerance.replies * said_greedy, detail)


def _pair(request: ScoreRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return request.context_ids, request.continuation_ids


def _continuations(subject: Subject, probe: Probe) -> list[tuple[int, ...]]:
    """First token, first word and all of the greedy reply; and each of these with its last token changed.

    With a reference, those whose greedy flag rounding could turn are left out.
    """
    if probe.greedy is not None and subject.reference is not None:
        ids = tuple(token for token in probe.greedy.ids[: probe.sure] if token not in subject.reference.end_ids)
    else:
        reply = subject.reply_alone(probe.request())
        whole = subject.encode(probe.prompt + reply.text, probe.add_special_tokens)
        readable = whole[: len(probe.ids)] == probe.ids and len(whole) - len(probe.ids) == reply.completion_tokens
        ids = whole[len(probe.ids) :] if readable and UNREADABLE not in reply.text else ()
    word = next((n for n in range(1, len(ids)) if len(subject.decode(ids[: n + 1]).split()) > 1), len(ids))
    lengths = sorted({1, word, len(ids)}) if ids else []
    true = [ids[:n] for n in lengths]
    others = [token for token in probe.ids[::-1] if subject.decode([token]).strip()]
    found = true + [(*greedy[:-1], other) for greedy in true for other in [t for t in others if t != greedy[-1]][:1]]
    if subject.reference is None or not found:
        return found
    margins = subject.reference.margins(probe.ids, ids, found)
    return [one for one, margin in zip(found, margins, strict=True) if margin > subject.tolerance.margin]


def chat_template(subject: Subject) -> Check:
    """The chat template is applied once, with one BOS in front, and the engine adds nothing to it."""
    engine, text = subject.engine, subject.texts[0]
    if engine.tokenizer is None:
        raise CannotCheck("chats are rendered where the weights are")
    rendered = engine.render_chat([user(text)])
    before, found, _ = rendered.partition(text)
    faults = [] if found else ["the message is not in its rendering"]
    times = times_over(_bare(before))
    if times > 1:
        faults.append(f"what opens the turn stands there {times} times")
    if engine.has_chat_template and rendered != engine.tokenizer.apply_chat_template(
        [user(text)], tokenize=False, add_generation_prompt=True
    ):
        faults.append("the rendering is not the tokenizer's own")
    bos = engine.tokenizer.bos_token_id
    for protocol, add in (("generation", not engine.has_chat_template), ("log-likelihood", None)):
        if bos is not None and subject.encode(rendered, add)[:2] == (bos, bos):
            faults.append(f"{protocol} begins with two BOS tokens")
    probe = subject.probe(text)
    fed = subject.reply_alone(probe.request(1)).prompt_tokens
    if fed != len(probe.ids):
        faults.append(f"the engine read {fed} tokens of a prompt of {len(probe.ids)}")
    kind = "chat template" if engine.has_chat_template else "plain rendering (the checkpoint has no chat template)"
    return Check.counted(
        "chat template", len(faults), 0, f"{kind}: {'; '.join(faults) or 'applied once, nothing doubled'}"
    )


def fingerprint(subject: Subject) -> list[ScoreRequest]:
    """Requests whose log-likelihoods tell one set of weights from another: the first two texts."""
    return [_split(subject.encoded(text)[-FINGERPRINT_TOKENS:]) for text in subject.texts[:2]]


def weights(subject: Subject, earlier: Sequence[Mapping[str, float]]) -> Check:
    """Fixed texts score now as they did `earlier` (each: key -> nats), and as a plain forward pass scores them now."""
    requests = fingerprint(subject)
    now = {result.key: result.loglikelihood_nats for result in subject.score(requests)}
    apart = [abs(known[key] - nats) for known in earlier for key, nats in now.items() if key in known]
    detail = f"fixed texts now and {len(earlier)} times before: up to {max(apart, default=0.0):.2g} nats apart"
    if subject.reference is not None:
        plain = [abs(now[request.key] - subject.reference.score(*_pair(request)).nats) for request in requests]
        detail += f"; up to {max(plain):.2g} from a plain forward pass"
        apart += plain
    if not apart:
        raise CannotCheck("there is no earlier log-likelihood, and this engine does not show its model")
    return _nats("weights", subject, max(apart), detail)


CHECKS: tuple[Callable[[Subject], Check], ...] = (
    scored_position,
    cached_against_full,
    batch_size,
    padding,
    shared_prefixes,
    prompt_isolation,
    restart,
    negative_control,
    end_token,
    chat_template,
    one_question,
    as_a_run,
    long_replies,
    truncation,
    stop_strings,
    sampling,
)
"""Every check except `weights`, which also takes earlier log-likelihoods."""
