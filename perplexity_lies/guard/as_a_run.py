"""The guard's checks that drive the engine as a run does: more rows than slots, long prompts and replies, cuts.

With a shown model every token of every reply is held against a full forward pass over its prompt and reply (`watch.py`), so
a long reply costs one pass more than writing it did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perplexity_lies.engines.base import GenerateRequest, GenerateResult, ScoreRequest
from perplexity_lies.guard.subject import CannotCheck, Check, Subject
from perplexity_lies.guard.typical import typical

if TYPE_CHECKING:
    from perplexity_lies.guard.reference import Reference, Scored
    from perplexity_lies.guard.watch import Recording

SLOTS = 3
"""Rows decoded together; there are several times as many."""
LONG_PROMPT_TOKENS = 320
LONG_REPLY_TOKENS = 160
SHORT_REPLIES_TOKENS = (150, 70, 1)
"""Each short prompt is asked for a reply of each of these lengths: rows enter and leave at different times."""
CUT_PROMPT_TOKENS = 24
CUT_REPLY_TOKENS = 40
SHORT_TEXTS = 3
UNSEEN_TOKENS = 6
"""Longest reply that is compared where the model is not shown: in a longer one, rounding may take another way."""
STRETCH_TOKENS = 8
"""A long reply is scored in continuations of this many tokens."""
MOST_STRETCHES = 40
CUT_CONTEXT_TOKENS = 1024
"""A checkpoint of a longer context is not asked for a continuation beyond it: it would cost too much."""


@dataclass(slots=True)
class Walked:
    """What came of a batch of long replies."""

    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    """Replies that are not what they say: a text, a count or a reason that does not fit the tokens."""
    behind: list[float] = field(default_factory=list)
    """For each token, its distance in logits from the greedy one of a full forward pass."""
    apart_nats: list[list[float]] = field(default_factory=list)
    """For each token of each reply, how far the engine's logits were from those of a full forward pass."""
    replies: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """Token ids of prompt and reply."""

    def hold(self, recording: Recording, prompt: tuple[int, ...], reply: tuple[int, ...], logits: Any) -> None:
        """Hold a reply against the logits of a full forward pass that lead to its tokens."""
        from perplexity_lies.guard.watch import behind

        self.replies.append((prompt, reply))
        self.tokens += len(reply)
        self.behind += behind(logits, reply)
        self.apart_nats.append(recording.nearest(logits, reply))


def requests_of_a_run(subject: Subject) -> list[tuple[GenerateRequest, tuple[int, ...]]]:
    """Requests that take a batch through all it does, with their token ids: short prompts, long ones with one header, one cut."""
    found: list[tuple[GenerateRequest, tuple[int, ...]]] = []
    context = subject.engine.context_tokens

    def ask(prompt: str, chat: bool, tokens: int, most: int | None = None) -> None:
        add = not (chat and subject.engine.has_chat_template)
        whole = subject.encode(prompt, add)
        ids = whole if most is None else whole[-most:]
        tokens = min(tokens, context - len(ids) - 1)
        if tokens > 0:
            request = GenerateRequest(
                prompt=prompt, add_special_tokens=add, max_new_tokens=tokens, max_prompt_tokens=most
            )
            found.append((request, ids))

    first, *others = [
        subject.engine.render_chat([{"role": "user", "content": text}]) for text in subject.texts[:SHORT_TEXTS]
    ]
    lengths = [len(subject.encode(prompt, not subject.engine.has_chat_template)) for prompt in others]
    for tokens in SHORT_REPLIES_TOKENS:
        ask(first, True, tokens)
        for prompt, length in zip(others, lengths, strict=True):  # of one length: they are prefilled together
            ask(prompt, True, tokens, min(lengths) if length > min(lengths) else None)
    body = long_text(subject, min(LONG_PROMPT_TOKENS, context // 2) - len(subject.encode(subject.items[0])))
    ask(body + subject.items[0], False, LONG_REPLY_TOKENS)
    ask(body + subject.items[1], False, CUT_REPLY_TOKENS)
    ask(subject.texts[1] + body, False, CUT_REPLY_TOKENS, CUT_PROMPT_TOKENS)
    return found


def long_text(subject: Subject, tokens: int) -> str:
    """The fixed texts one after the other, over and over, to about `tokens` tokens."""
    text = ""
    while True:
        for part in subject.texts:
            longer = f"{text}{part}\n"
            if text and len(subject.encode(longer)) > tokens:
                return text
            text = longer


def read_reply_of(subject: Subject, request: GenerateRequest, ids: tuple[int, ...], reply: GenerateResult) -> str:
    """What is wrong about a reply that may not end by itself; empty where nothing is."""
    if reply.prompt_tokens != len(ids):
        return f"{reply.prompt_tokens} tokens of a prompt of {len(ids)} were read"
    if len(reply.token_ids) != reply.completion_tokens:
        return f"{len(reply.token_ids)} tokens are counted as {reply.completion_tokens}"
    if (reply.completion_tokens, reply.finish_reason) != (request.max_new_tokens, "length"):
        return (
            f"a reply of {request.max_new_tokens} tokens ended after {reply.completion_tokens}: {reply.finish_reason}"
        )
    if reply.text != subject.decode(reply.token_ids):
        return "a text is not that of its tokens"
    return ""


def walk(subject: Subject, reference: Reference) -> Walked:
    """Ask for long replies in a small batch and hold each of their tokens against full forward passes."""
    from perplexity_lies.guard.watch import after, kept_out, recorded

    asked, walked = requests_of_a_run(subject), Walked()
    with kept_out(reference, reference.end_ids):
        with recorded(reference) as recording, subject.engine.fewer_slots(SLOTS):
            replies = subject.reply([request for request, _ in asked])
        passes: dict[tuple[int, ...], tuple[tuple[int, ...], Any]] = {}
        pairs = sorted(zip(asked, replies, strict=True), key=lambda pair: -len(pair[1].token_ids))
        for (request, ids), reply in pairs:
            wrong = read_reply_of(subject, request, ids, reply)
            if wrong:
                walked.wrong.append(wrong)
            if reply.token_ids:
                longest, logits = passes.get(ids, ((), None))
                if longest[: len(reply.token_ids)] != reply.token_ids:
                    longest, logits = passes[ids] = reply.token_ids, after(reference, ids, reply.token_ids)
                walked.hold(recording, ids, reply.token_ids, logits[: len(reply.token_ids)])
    return walked


def as_a_run(subject: Subject) -> Check:
    """A batch as in a run: rows enter and leave while it decodes, prompts and replies are long, buffers grow and shrink."""
    tolerance = subject.tolerance
    if subject.reference is None:
        return _as_a_run_unseen(subject)
    walked = _walked(subject)
    if not walked.tokens:
        raise CannotCheck("the context has no room for a reply")
    measured, bar, how = typical(subject, walked.apart_nats)
    strange = sum(lag > tolerance.margin for lag in walked.behind)
    detail = (
        f"{walked.tokens} tokens of replies from {SLOTS} slots: {how} {measured:.2g} nats "
        f"from full forward passes, {strange} not greedy there"
    )
    if walked.wrong:
        detail += f"; {len(walked.wrong)} replies are not what they say: {walked.wrong[0]}"
    passed = measured <= bar and strange <= tolerance.strange * walked.tokens and not walked.wrong
    return Check(name="as a run", passed=passed, measured=measured, tolerance=bar, detail=detail)


def _as_a_run_unseen(subject: Subject) -> Check:
    """Without a shown model: short replies from few slots, together and alone."""
    requests = [
        GenerateRequest(
            prompt=request.prompt, add_special_tokens=request.add_special_tokens,
            max_new_tokens=min(UNSEEN_TOKENS, request.max_new_tokens), max_prompt_tokens=request.max_prompt_tokens,
        )
        for request, _ in requests_of_a_run(subject)
    ]  # fmt: skip
    requests = list({request.key: request for request in requests}.values())
    with subject.engine.fewer_slots(SLOTS):
        together = subject.reply(requests)
    alone = [subject.reply_alone(request) for request in requests]
    differing = sum(a.text != b.text for a, b in zip(together, alone, strict=True))
    detail = f"{len(requests)} prompts, short, long and cut, together and alone: {differing} replies differ"
    return Check.counted("as a run", differing, subject.tolerance.replies * len(requests), detail)


def long_replies(subject: Subject) -> Check:
    """Long greedy replies, scored as answers, have the log-likelihood of full forward passes and are greedy, as in LAMBADA."""
    reference, tolerance = _reference(subject), subject.tolerance
    from perplexity_lies.guard.watch import stretches_of

    requests: list[ScoreRequest] = []
    own: list[Scored] = []
    for prompt, reply in _walked(subject).replies:
        if len(reply) < STRETCH_TOKENS or len(requests) >= MOST_STRETCHES:
            continue
        scored = stretches_of(reference, prompt, reply, STRETCH_TOKENS)[: MOST_STRETCHES - len(requests)]
        own += scored
        requests += [
            ScoreRequest(context_ids=(*prompt, *reply[:at]), continuation_ids=reply[at : at + STRETCH_TOKENS])
            for at in range(0, STRETCH_TOKENS * len(scored), STRETCH_TOKENS)
        ]
    if not requests:
        raise CannotCheck("no reply is long enough")
    apart, turned, greedy = [], 0, 0
    for found, wanted in zip(subject.score(requests), own, strict=True):
        apart.append(abs(wanted.nats - found.loglikelihood_nats))
        turned += wanted.is_greedy != found.is_greedy and wanted.margin > tolerance.margin
        greedy += wanted.is_greedy
    measured, bar, how = typical(subject, [[one] for one in apart])
    detail = (
        f"{len(requests)} stretches of {STRETCH_TOKENS} tokens of long replies, {greedy} of them greedy: "
        f"{how} {measured:.2g} nats from full forward passes, {turned} greedy flags turned"
    )
    return Check(
        name="long replies", passed=measured <= bar and not turned, measured=measured, tolerance=bar, detail=detail
    )


def _reference(subject: Subject) -> Reference:
    if subject.reference is None:
        raise CannotCheck("this engine does not show its model")
    return subject.reference


def _walked(subject: Subject) -> Walked:
    reference = _reference(subject)
    return subject.once("walk", lambda: walk(subject, reference))


def truncation(subject: Subject) -> Check:
    """A prompt beyond the context loses tokens on the left, and the counts say so."""
    reference, context = _reference(subject), subject.engine.context_tokens
    if context > CUT_CONTEXT_TOKENS:
        raise CannotCheck(f"a prompt beyond {context} tokens costs too much")
    from perplexity_lies.guard.watch import nats_after

    ids = subject.encode(long_text(subject, context + 32) + subject.texts[0] + subject.texts[1])
    apart, faults = [], []
    for tokens in (1, 3):
        request = ScoreRequest(context_ids=ids[:-tokens], continuation_ids=ids[-tokens:])
        found, kept = subject.score([request])[0], ids[-(context + 1) :]
        own = nats_after(reference, kept[:-tokens], kept[-tokens:])
        apart.append(abs(own - found.loglikelihood_nats))
        if found.truncated_tokens != len(ids) - len(kept):
            faults.append(f"{len(ids) - len(kept)} tokens were cut, {found.truncated_tokens} are said to be")
    detail = (
        f"{len(ids)} tokens scored in a context of {context}: up to {max(apart):.2g} nats from the last {context} alone"
    )
    passed = max(apart) <= subject.tolerance.nats and not faults
    return Check(
        name="truncation", passed=passed, measured=max(apart), tolerance=subject.tolerance.nats,
        detail="; ".join([detail, *faults]),
    )  # fmt: skip
