"""Read replies of OpenAI-compatible servers: log-probabilities of an echoed prompt, generated text, why it ended.

Follows the legacy Completions and the Chat Completions of OpenAI's API reference, as vLLM and others implement them. Guesses
nothing: a reply of another form raises one of `checkpoint.client.MALFORMED`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from perplexity_lies.engines.base import FinishReason
from perplexity_lies.engines.decoding import first_stop


def letters(words: Sequence[str]) -> str:
    """The ASCII letters and digits of tokens: servers spell spaces, special tokens and parts of other letters differently."""
    return "".join(c for word in words for c in word if c.isascii() and c.isalnum())


def read_logprobs(content: Any, count: int) -> tuple[list[str], list[float], list[bool]]:
    """(tokens, log-probabilities in nats, whether each is the likeliest) for `count` prompt tokens but the first.

    Nothing precedes the first, so it has no log-probability. Raises one of `MALFORMED` for a reply without them.
    """
    found = content["choices"][0]["logprobs"]
    values, tops, spelled = found["token_logprobs"], found["top_logprobs"], found["tokens"]
    if not count <= len(values) <= count + 1:
        raise ValueError(f"{len(values)} log-probabilities for {count} prompt tokens and at most one more")
    nats = [float(value) for value in values[1:count]]
    if not all(math.isfinite(value) for value in nats):
        raise ValueError("a log-probability that is not a number")
    likeliest = [value >= max((top or {}).values()) for value, top in zip(nats, tops[1:count], strict=True)]
    return [str(token) for token in spelled[1:count]], nats, likeliest


def read_reply(content: Any, stop: Sequence[str]) -> tuple[str, FinishReason]:
    """(text up to the first stop string, why it ended). Raises one of `MALFORMED`.

    Where a server does not tell a stop string from an end token (vLLM does, by `stop_reason`), "stop" stands for both.
    """
    choice = content["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    text = "" if text is None else text
    if not text and choice["finish_reason"] == "length":
        text = "".join(f"<think>\n{thought}" for thought in _thoughts(choice))
    if not isinstance(text, str):
        raise ValueError(f"a reply of type {type(text).__name__}")
    cut = first_stop(text, stop)
    if cut >= 0:
        return text[:cut], "stop_string"
    if choice["finish_reason"] == "length":
        return text, "length"
    if choice["finish_reason"] != "stop":
        raise ValueError(f"finish_reason {choice['finish_reason']!r}")
    return text, "stop_string" if isinstance(choice.get("stop_reason"), str) else "stop"


def _thoughts(choice: Any) -> list[str]:
    """What a server took out of the reply as the checkpoint's thought, in a field of its own."""
    message = choice.get("message") or {}
    found = [message.get(name) for name in ("reasoning_content", "reasoning")]
    return [text for text in found if isinstance(text, str) and text.strip()][:1]


def put_elsewhere(content: Any) -> str:
    """Why a chat reply without content is no reply: the server put what was said into another field. Empty where it did not."""
    choice = content["choices"][0]
    message = choice.get("message") or {}
    if message.get("content") or choice["finish_reason"] == "length":
        return ""
    if isinstance(message.get("refusal"), str) and message["refusal"].strip():
        return f"the server refused: {message['refusal'].strip()[:200]}"
    if message.get("tool_calls") or message.get("function_call"):
        return "the server made the reply a call of a tool"
    return "the server put the whole reply into its field for thoughts" if _thoughts(choice) else ""


def usage_of(content: Any, name: str) -> int | None:
    """The server's count of `prompt_tokens` or `completion_tokens`; None where it does not count."""
    value = (content.get("usage") or {}).get(name)
    return value if isinstance(value, int) else None


def an_object(content: Any) -> dict[str, Any]:
    """The reply as it is. Raises ValueError where it is not an object."""
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}, expected an object")
    return content
