"""Find out what an OpenAI-compatible server can do: one-token requests in every form, until one is answered as it should be.

    find_ability(client, "my-model", tokenizer)   ->   Ability(prompts="ids", added_ids=(), why_no_score="")

Tried first: token ids, then text, each with log-probabilities; the same without; last, chats. The first form that works is
used. Where the tokenizer is known, it must spell and count the probe as the server does: with another tokenizer every
number would be wrong and none would look it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perplexity_lies.checkpoint.client import FORM, LOCKED, MALFORMED, Client, Failed, Refused, locked_out
from perplexity_lies.engines import tokens
from perplexity_lies.engines.replies import an_object, letters, read_logprobs, read_reply, usage_of
from perplexity_lies.errors import MissingError, UsageError

PROBE = "The quick brown fox jumps over the lazy dog"

Prompts = Literal["ids", "text", "messages"]
"""How prompts are sent to the server."""

Form = Callable[[Client, dict[str, Any], Any, bool], tuple[int, ...]]
"""Tries one form of request (client, body, tokenizer, echo); returns the token ids that the server adds before a text."""

ECHO = {"echo": True, "logprobs": 1}
NO_TOKENIZER = "its tokenizer is not known here (--tokenizer DIR or ORG/NAME)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """How a server is used."""

    prompts: Prompts
    added_ids: tuple[int, ...] = ()
    """Token ids that the server adds before a text, such as BOS."""
    why_no_score: str = ""
    """Why the server gives no log-likelihoods; empty where it does."""


class _Unable(Exception):
    """The server does not answer this form of request as it should."""


def _ask(client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply. Raises _Unable where it is refused or has another form, MissingError where nothing comes back."""
    try:
        return client.ask(path, body, an_object)
    except Refused as error:
        if error.status in LOCKED:
            raise locked_out(client.url, error) from error
        raise _Unable(str(error)) from error
    except Failed as error:
        if error.status == 0:
            raise MissingError(
                f"the server at {client.url} does not answer", found=str(error), mend="look at its log; then the same again"
            ) from error  # fmt: skip
        raise _Unable(str(error)) from error


def _echoed(content: dict[str, Any], tokenizer: Any, ids: Sequence[int]) -> None:
    """Raises _Unable unless each prompt token has a log-probability, UsageError where the server spells other tokens."""
    try:
        if not content["choices"][0].get("logprobs"):
            raise _Unable("the reply has no log-probabilities")
        words, _, _ = read_logprobs(content, len(ids))
    except MALFORMED as error:
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
    except MALFORMED as error:
        raise _Unable(f"a malformed reply ({type(error).__name__}: {error})") from error


def _counted(content: dict[str, Any], echo: bool) -> int | None:
    """Prompt tokens by the server's count; without one, all that it echoes but the one that it generated; None without either."""
    count = usage_of(content, "prompt_tokens")
    if count is None and echo:
        try:
            count = len(content["choices"][0]["logprobs"]["token_logprobs"]) - 1
        except MALFORMED as error:
            raise _Unable("the reply has no log-probabilities") from error
    return count


def _with_ids(client: Client, body: dict[str, Any], tokenizer: Any, echo: bool) -> tuple[int, ...]:
    ids = tokens.encode(tokenizer, PROBE, False)
    content = _ask(client, "/completions", {**body, "prompt": ids})
    if usage_of(content, "prompt_tokens") not in (None, len(ids)):
        raise _Unable("a list of token ids is not read as such")
    _echoed(content, tokenizer, ids) if echo else _generated(content)
    return ()


def _with_text(client: Client, body: dict[str, Any], tokenizer: Any, echo: bool) -> tuple[int, ...]:
    """Token ids that the server adds before a text."""
    bare, dressed = tokens.encode(tokenizer, PROBE, False), tokens.encode(tokenizer, PROBE, True)
    content = _ask(client, "/completions", {**body, "prompt": PROBE})
    count = _counted(content, echo)
    if count not in (None, len(bare), len(dressed)):
        raise UsageError(
            "the tokenizer is not the one that the server uses",
            found=f"{PROBE!r} is {count} tokens there and {len(bare)} here ({len(dressed)} with special ones)",
            mend="--tokenizer DIR or ORG/NAME of the checkpoint that is served",
        )
    _echoed(content, tokenizer, bare if count == len(bare) else dressed) if echo else _generated(content)
    return () if count == len(bare) else tuple(dressed[: len(dressed) - len(bare)])


def find_ability(client: Client, model: str, tokenizer: Any) -> Ability:
    """The first form of request that the server answers for `model`; `tokenizer` is None where it is not known.

    Raises MissingError when no form is answered or the server is gone, UsageError when the tokenizer is not the server's.
    """
    body = {"model": model, "max_tokens": 1, "temperature": 0}
    said: list[str] = []
    forms: dict[Prompts, Form] = {"ids": _with_ids, "text": _with_text} if tokenizer is not None else {}
    for echo in (True, False):
        for prompts, ask in forms.items():
            try:
                added = ask(client, {**body, **(ECHO if echo else {})}, tokenizer, echo)
            except _Unable as reason:
                said.append(f"/completions, prompt as {prompts}{', echo and logprobs' if echo else ''}: {reason}")
                continue
            return Ability(prompts=prompts, added_ids=added, why_no_score="" if echo else "; ".join(said[: len(forms)]))
    try:
        chat = [{"role": "user", "content": PROBE}]
        _generated(_ask(client, "/chat/completions", {**body, "messages": chat}))
    except _Unable as reason:
        raise MissingError(
            f"{client.url} answers neither prompts nor chats for {model!r}",
            found=(*said, f"/chat/completions: {reason}"),
            mend=(FORM, *(["--tokenizer DIR or ORG/NAME: chats are then rendered here"] if tokenizer is None else [])),
        ) from reason
    return Ability(prompts="messages", why_no_score="; ".join(said[: len(forms)]) or NO_TOKENIZER)
