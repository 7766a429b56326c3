"""What an engine is: requests arrive as a whole, results stream back in batches.

One engine object serves both protocols, so that a gap can only come from the protocol. Knows nothing of lm-eval,
evalscope, items or scores. Standard library only.
"""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`, as transformers' chat templates take it."""

FinishReason = Literal["stop", "stop_string", "length"]
"""Of one row: its end token, one of its stop strings, or its budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a checkpoint is loaded. Enters the run's manifest."""

    device: str = "auto"
    """`auto` (cuda where there is one, else cpu), `cpu`, `cuda`, `cuda:N`."""
    dtype: str = "auto"
    """`auto` (float32 on CPU, the stored dtype on CUDA), `float32`, `bfloat16`, `float16`."""
    batch_tokens: int = 8192
    """Most prompt tokens in one forward pass."""
    slots: int = 64
    """Most rows that are decoded together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Log-likelihood of `continuation_ids` after `context_ids`."""

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]

    @property
    def key(self) -> str:
        """Content hash: equal requests have equal keys."""
        return _digest(["score", self.context_ids, self.continuation_ids])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """What the checkpoint says of one continuation."""

    key: str
    loglikelihood_nats: float
    """Sum over the continuation's tokens."""
    is_greedy: bool
    """Whether every token of the continuation is the most likely one."""
    context_tokens: int
    continuation_tokens: int
    truncated_tokens: int = 0
    """Tokens cut from the left because the whole did not fit the context."""
    error: str = ""
    """Why there is no log-likelihood (the number above is then no measurement); empty for an answer."""
    failed: bool = False
    """Whether `error` tells of a failure that another try might not meet, rather than of a request that cannot be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Continue `prompt`. The chat template, if any, is already in it (`Engine.render_chat`)."""

    prompt: str
    add_special_tokens: bool
    """Whether the tokenizer adds its own (a chat template has already placed them)."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    seed: int = 0
    """Of this row alone: its text does not depend on its neighbours."""
    max_prompt_tokens: int | None = None
    """Cut the prompt from the left to this many tokens, as lm-eval does; None never cuts, as evalscope."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of a chat that goes to the engine as it is (`Engine.takes_messages`); `prompt` is then its transcript."""

    @property
    def key(self) -> str:
        """Content hash: equal requests have equal keys."""
        content = asdict(self)
        if not self.messages:
            del content["messages"]
        return _digest(["generate", content])


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """One reply."""

    key: str
    text: str
    """Without special tokens, cut before the stop string."""
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    """With the end token, where there was one."""
    truncated_tokens: int = 0
    beyond_context_tokens: int = 0
    """Tokens at positions beyond the checkpoint's stated context."""
    smallest_margin: float | None = None
    """Greedy: the least by which a token of the reply was ahead of the second best, in logits. None when unknown."""
    error: str = ""
    """Why the row could not be run; empty for a reply."""
    failed: bool = False
    """Whether `error` tells of a failure that another try might not meet, rather than of a request that cannot be run."""


Finished = Callable[[str], bool]
"""Whether the result with this key is already on disk."""


def nothing_finished(key: str) -> bool:
    """The `Finished` of a fresh start."""
    return False


class CannotShare(Exception):
    """Why a checkpoint's state cannot be forked, or cannot stand in slots."""


class Engine(abc.ABC):
    """A loaded checkpoint. `tokenizer` is a transformers tokenizer; None where a server's is not known.

    The torch engine plans batches over *all* requests and runs a batch whole of which any result is missing: what is
    computed does not depend on where an earlier run was killed, to the last bit.
    """

    tokenizer: Any

    @property
    @abc.abstractmethod
    def context_tokens(self) -> int:
        """The checkpoint's stated context, found as lm-eval finds it."""

    @property
    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """What was chosen at loading (device, dtype, threads ...), for the manifest."""

    @abc.abstractmethod
    def score(
        self, requests: Sequence[ScoreRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[ScoreResult]]:
        """Batches of results, each distinct key once, in the engine's own order."""

    @abc.abstractmethod
    def generate(
        self, requests: Sequence[GenerateRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[GenerateResult]]:
        """Batches of results, each distinct key once, in the engine's own order."""

    @abc.abstractmethod
    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids. None lets the tokenizer decide, unless the text already opens with its BOS (lm-eval's rule)."""

    @abc.abstractmethod
    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Messages through the checkpoint's own chat template; `role: content` lines where it has none (evalscope's rule)."""

    @property
    @abc.abstractmethod
    def has_chat_template(self) -> bool:
        """Whether `render_chat` uses a template of the checkpoint."""

    @property
    def why_no_score(self) -> str:
        """Why this engine has no log-likelihoods of given tokens; empty where it has them."""
        return ""

    @property
    def takes_messages(self) -> bool:
        """Whether a chat goes to the engine as messages, because the template is applied where the weights are."""
        return False


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
