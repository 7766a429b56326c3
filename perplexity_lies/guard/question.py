"""The guard's check on the token ids of one item: do all rungs ask the same question, and the same one every time?

Log-likelihood encodes a rendered chat as lm-eval does (the tokenizer may add BOS), generation as evalscope does (the template has
placed what is special). The ids must be equal and have at most one BOS; the assistant's turn is open, once, and nothing has ended
it; the same messages render to the same text at any time of any day.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Self

from perplexity_lies.errors import PliesError
from perplexity_lies.guard.subject import CannotCheck, Check, Subject, user

OTHER_DAY = "2043-11-27T21:37:58"
"""A clock that shows this differs from any clock of today in every part."""
ANSWER = "forty-two"


@contextlib.contextmanager
def another_day() -> Iterator[None]:
    """Inside, chat templates see `OTHER_DAY` where nobody stops their clock.

    transformers takes no clock as an argument of a template, so the name that its own reads is replaced for this moment.
    """
    from transformers.utils import chat_template_utils

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Self:
            return cls.fromisoformat(OTHER_DAY)

    real = chat_template_utils.datetime
    chat_template_utils.datetime = Later
    try:
        yield
    finally:
        chat_template_utils.datetime = real


def end_ids_of(subject: Subject) -> frozenset[int]:
    """Tokens that end a reply, as far as they are known here."""
    if subject.reference is not None:
        return subject.reference.end_ids
    end = getattr(subject.engine.tokenizer, "eos_token_id", None)
    return frozenset() if end is None else frozenset([end])


def _spelled(subject: Subject, ids: tuple[int, ...]) -> str:
    return repr(subject.engine.tokenizer.decode(list(ids))) if ids else "nothing"


def beginning(subject: Subject, rendered: str) -> list[str]:
    """What differs between the two ways in which a rendered chat becomes token ids."""
    ranked, generated = subject.encode(rendered), subject.encode(rendered, not subject.engine.has_chat_template)
    faults = []
    bos, ends = getattr(subject.engine.tokenizer, "bos_token_id", None), end_ids_of(subject)
    for rung, ids in (("log-likelihood", ranked), ("generation", generated)):
        if bos is not None and ids[:2] == (bos, bos):
            faults.append(f"{rung} begins with two BOS tokens")
        if ids and ids[-1] in ends:
            faults.append(f"{rung} puts an end token before the answer")
    if ranked == (bos, *generated) and subject.beginnings_told:
        return faults
    if ranked != generated:
        same = next((n for n, pair in enumerate(zip(ranked, generated, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(ranked), len(generated)) if same is None else same
        faults.append(
            f"log-likelihood is asked {len(ranked)} tokens and generation {len(generated)}: from token {at} on "
            f"{_spelled(subject, ranked[at : at + 2])} and {_spelled(subject, generated[at : at + 2])}"
        )
    return faults


def times_over(text: str) -> int:
    """How many times a text repeats one shorter text: 1 for most texts, 0 for an empty one."""
    return len(text) // (text + text).index(text, 1) if text else 1


def open_turn(subject: Subject, rendered: str, text: str) -> list[str]:
    """What is wrong about the assistant's turn at the end of a rendered chat, by the tokenizer's own template."""
    own = subject.engine.tokenizer
    try:
        closed = own.apply_chat_template([user(text)], tokenize=False, add_generation_prompt=False)
        answered = own.apply_chat_template(
            [user(text), {"role": "assistant", "content": ANSWER}], tokenize=False, add_generation_prompt=False
        )
    except Exception:  # a template of the checkpoint's own may refuse anything
        return []
    tail, bare = rendered.rpartition(text)[2], closed.rpartition(text)[2]
    before_answer = answered.rpartition(text)[2].partition(ANSWER)[0]
    opener = tail.removeprefix(bare).strip()
    if not opener and ANSWER in answered and before_answer.strip() != bare.strip():
        return ["the assistant's turn is not open"]
    if opener and (bare.rstrip().endswith(opener) or tail.count(opener) > 1 or times_over(opener) > 1):
        return ["the assistant's turn is opened more than once"]
    return []


def unstable(subject: Subject, rendered: str, text: str) -> list[str]:
    """Whether the same messages render to another text at another time."""
    engine, faults = subject.engine, []
    if engine.render_chat([user(text)]) != rendered:
        faults.append("two renderings of one chat differ")
    if engine.has_chat_template:
        with another_day():
            if engine.render_chat([user(text)]) != rendered:
                faults.append(
                    "the template writes the date or the clock into the prompt: another day, another question"
                )
    return faults


def one_question(subject: Subject) -> Check:
    """Both rungs send the same token ids for one item: one beginning, an open turn, no end before the answer, at any time."""
    engine = subject.engine
    if engine.takes_messages or engine.tokenizer is None:
        raise CannotCheck("chats are rendered where the weights are: what its model reads is not known here")
    faults: list[str] = []
    for text in dict.fromkeys((subject.texts[0], subject.texts[-1])):
        rendered = engine.render_chat([user(text)])
        faults += beginning(subject, rendered)
        plain = subject.encode(text)
        if plain and plain[-1] in end_ids_of(subject):
            faults.append("log-likelihood puts an end token before the answer of a plain prompt")
        try:
            faults += unstable(subject, rendered, text)
        except PliesError as error:
            faults.append(f"a template that renders one time and not another: {error.found}")
        if engine.has_chat_template and text in rendered:
            faults += open_turn(subject, rendered, text)
    faults = list(dict.fromkeys(faults))
    begin = (
        _spelled(subject, subject.encode(subject.texts[0])[:1]),
        _spelled(subject, subject.encode(rendered, False)[:1]),
    )
    detail = f"a plain prompt begins with {begin[0]}, a chat with {begin[1]}; "
    if subject.beginnings_told and subject.encode(rendered)[1:] == subject.encode(rendered, False):
        detail += "the tokenizer puts BOS before a chat whose template writes none; "
    detail += "; ".join(faults) or "equal ids for log-likelihood and generation, at any time"
    return Check.counted("one question", len(faults), 0, detail)
