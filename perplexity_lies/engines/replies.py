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

ENDED: dict[str, FinishReason] = {
    **dict.fromkeys(
        ("stop", "eos", "eos_token", "end_turn", "end", "tool_calls", "function_call", "content_filter"), "stop"
    ),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_output_tokens", "model_length"), "length"),
    "stop_sequence": "stop_string",
}
"""What servers give as finish_reason. Of a filtered reply, and of a tool's call, `put_elsewhere` says that they are no reply."""

HIGHEST_NATS = 1e-3
"""A log-probability above it, rounding allowed for, is none."""
MOST_TOKENS = 1 << 31


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
    if any(value > HIGHEST_NATS for value in nats):
        raise ValueError(f"a log-probability of {max(nats)}, above zero")
    likeliest = [value >= max((top or {}).values()) for value, top in zip(nats, tops[1:count], strict=True)]
    return [str(token) for token in spelled[1:count]], nats, likeliest


def read_reply(content: Any, stop: Sequence[str]) -> tuple[str, FinishReason]:
    """(text up to the first stop string, why it ended). Raises one of `MALFORMED`.

    Where a server does not tell a stop string from an end token (vLLM does, by `stop_reason`), "stop" stands for both.
    """
    choice = content["choices"][0]
    text = _text(choice["message"]["content"] if "message" in choice else choice["text"])
    given = choice["finish_reason"]
    reason = ENDED.get(given.lower()) if isinstance(given, str) else None
    if not text and reason == "length":
        text = "".join(f"<think>\n{thought}" for thought in _thoughts(choice))
    cut = first_stop(text, stop)
    if cut >= 0:
        return text[:cut], "stop_string"
    if reason is None:
        raise ValueError(f"finish_reason {given!r}")
    return text, "stop_string" if reason == "stop" and isinstance(choice.get("stop_reason"), str) else reason


def _text(found: Any) -> str:
    """A reply's text: as it is, the texts of its parts, or none. Half a surrogate pair, which no file may hold, becomes `?`."""
    if isinstance(found, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in found):
        found = "".join(part["text"] for part in found)
    if not isinstance(found, str | None):
        raise ValueError(f"a reply of type {type(found).__name__}")
    return (found or "").encode("utf-8", "replace").decode("utf-8")


def _thoughts(choice: Any) -> list[str]:
    """What a server took out of the reply as the checkpoint's thought, in a field of its own."""
    message = choice.get("message") or {}
    found = [message.get(name) for name in ("reasoning_content", "reasoning")]
    return [_text(text) for text in found if isinstance(text, str) and text.strip()][:1]


def put_elsewhere(content: Any) -> str:
    """Why a chat reply without content is no reply: the server put what was said into another field. Empty where it did not."""
    choice = content["choices"][0]
    message = choice.get("message") or {}
    if choice["finish_reason"] == "content_filter":
        return "the server's content filter withheld the reply"
    if message.get("content") or ENDED.get(str(choice["finish_reason"]).lower()) == "length":
        return ""
    if isinstance(message.get("refusal"), str) and message["refusal"].strip():
        return f"the server refused: {_text(message['refusal'].strip()[:200])}"
    if message.get("tool_calls") or message.get("function_call"):
        return "the server made the reply a call of a tool"
    return "the server put the whole reply into its field for thoughts" if _thoughts(choice) else ""


def usage_of(content: Any, name: str) -> int | None:
    """The server's count of `prompt_tokens` or `completion_tokens`; None where it does not count."""
    value = (content.get("usage") or {}).get(name)
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def tokens_not_read(content: Any, messages: Sequence[tuple[str, str]], at_least: int = 0) -> int:
    """How many tokens of a chat the server cannot have read, by its own count: it cut the prompt, and usage alone says so.

    A lower bound: no tokenizer makes fewer tokens than there are words between blanks; `at_least`: tokens that are known.
    """
    counted = usage_of(content, "prompt_tokens")
    words = sum(len(text.split()) for _, text in messages)
    return max(0, max(words, at_least) - counted) if counted else 0


def an_object(content: Any) -> dict[str, Any]:
    """The reply as it is. Raises ValueError where it is not an object."""
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}, expected an object")
    return content
