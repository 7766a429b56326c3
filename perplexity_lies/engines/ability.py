"""What an OpenAI-compatible server can do, found by asking it for one token in every form until one is answered well.

Token ids before text, log-probabilities before none, completions before chats: the first form that is answered as it should
be is the one that is used. The tokenizer, where it is known, is held against the server's own spelling and counting, since
with another one every number would be wrong and none would look it.

Knows nothing of requests beyond its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perplexity_lies.checkpoint.client import FORM, LOCKED, Failed, Refused, Server, locked_out
from perplexity_lies.engines import tokens
from perplexity_lies.engines.replies import an_object, letters, read_logprobs, read_reply, usage_of
from perplexity_lies.errors import MissingError, UsageError

PROBE = "The quick brown fox jumps over the lazy dog"

Prompts = Literal["ids", "text", "messages"]
"""What a prompt goes to the server as."""

Form = Callable[[Server, dict[str, Any], Any, bool], tuple[int, ...]]
"""Asks (server, body, tokenizer, echo) in one form; gives what the server puts before a text by itself."""

ECHO = {"echo": True, "logprobs": 1}
NO_TOKENIZER = "its tokenizer is not known here (--tokenizer DIR or ORG/NAME)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """What the probe found."""

    prompts: Prompts
    added_ids: tuple[int, ...] = ()
    """Tokens that the server puts before a text by itself."""
    why_no_score: str = ""
    """Why log-likelihoods cannot be had; empty where they can."""


class _Unable(Exception):
    """This form of the question is not answered as it should be."""


def _ask(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply. Raises _Unable for one in another form, MissingError where there is none at all."""
    try:
        return server.ask(path, body, an_object)
    except Refused as error:
        if error.status in LOCKED:
            raise locked_out(server.url, error) from error
        raise _Unable(str(error)) from error
    except Failed as error:
        if error.status == 0:
            raise MissingError(
                f"the server at {server.url} does not answer", found=str(error), mend="look at its log; then the same again"
            ) from error  # fmt: skip
        raise _Unable(str(error)) from error


def _echoed(content: dict[str, Any], tokenizer: Any, ids: Sequence[int]) -> None:
    """Raise _Unable unless there is a log-probability for each token of the prompt, UsageError for other tokens."""
    try:
        if not content["choices"][0].get("logprobs"):
            raise _Unable("the reply has no log-probabilities")
        words, _, _ = read_logprobs(content, len(ids))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _Unable(f"no log-probability for each token of the prompt ({type(error).__name__}: {error})") from error
    meant = tokens.spell(tokenizer, ids[1:])
    if letters(words) != letters(meant):
        raise UsageError(
            "the tokenizer is not the one that the server uses",
            found=(f"tokens here: {' | '.join(meant)}", f"and there: {' | '.join(words)}"),
            mend="--tokenizer DIR or ORG/NAME of the checkpoint that is served",
        )


def _generated(content: dict[str, Any]) -> None:
    try:
        read_reply(content, ())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _Unable(f"a malformed reply ({type(error).__name__}: {error})") from error


def _counted(content: dict[str, Any], echo: bool) -> int | None:
    """How many tokens the server read; where it does not say, all that it echoes but the one that it made."""
    count = usage_of(content, "prompt_tokens")
    if count is None and echo:
        try:
            count = len(content["choices"][0]["logprobs"]["token_logprobs"]) - 1
        except (KeyError, TypeError, IndexError) as error:
            raise _Unable("the reply has no log-probabilities") from error
    return count


def _with_ids(server: Server, body: dict[str, Any], tokenizer: Any, echo: bool) -> tuple[int, ...]:
    ids = tokens.encode(tokenizer, PROBE, False)
    content = _ask(server, "/completions", {**body, "prompt": ids})
    if usage_of(content, "prompt_tokens") not in (None, len(ids)):
        raise _Unable("a list of token ids is not read as such")
    _echoed(content, tokenizer, ids) if echo else _generated(content)
    return ()


def _with_text(server: Server, body: dict[str, Any], tokenizer: Any, echo: bool) -> tuple[int, ...]:
    """What the server puts before a text by itself."""
    bare, dressed = tokens.encode(tokenizer, PROBE, False), tokens.encode(tokenizer, PROBE, True)
    content = _ask(server, "/completions", {**body, "prompt": PROBE})
    count = _counted(content, echo)
    if count not in (None, len(bare), len(dressed)):
        raise UsageError(
            "the tokenizer is not the one that the server uses",
            found=f"{PROBE!r} is {count} tokens there and {len(bare)} here ({len(dressed)} with special ones)",
            mend="--tokenizer DIR or ORG/NAME of the checkpoint that is served",
        )
    _echoed(content, tokenizer, bare if count == len(bare) else dressed) if echo else _generated(content)
    return () if count == len(bare) else tuple(dressed[: len(dressed) - len(bare)])


def find_ability(server: Server, model: str, tokenizer: Any) -> Ability:
    """How `model` is to be asked; `tokenizer` is None where it is not known.

    Raises MissingError when no form is answered or the server is gone, UsageError when the tokenizer is not the server's.
    """
    body = {"model": model, "max_tokens": 1, "temperature": 0}
    said: list[str] = []
    forms: dict[Prompts, Form] = {"ids": _with_ids, "text": _with_text} if tokenizer is not None else {}
    for echo in (True, False):
        for prompts, ask in forms.items():
            try:
                added = ask(server, {**body, **(ECHO if echo else {})}, tokenizer, echo)
            except _Unable as reason:
                said.append(f"/completions, prompt as {prompts}{', echo and logprobs' if echo else ''}: {reason}")
                continue
            return Ability(prompts=prompts, added_ids=added, why_no_score="" if echo else "; ".join(said[: len(forms)]))
    try:
        chat = [{"role": "user", "content": PROBE}]
        _generated(_ask(server, "/chat/completions", {**body, "messages": chat}))
    except _Unable as reason:
        raise MissingError(
            f"{server.url} answers neither prompts nor chats for {model!r}",
            found=(*said, f"/chat/completions: {reason}"),
            mend=(FORM, *(["--tokenizer DIR or ORG/NAME: chats are then rendered here"] if tokenizer is None else [])),
        ) from reason
    return Ability(prompts="messages", why_no_score="; ".join(said[: len(forms)]) or NO_TOKENIZER)
