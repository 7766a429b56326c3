"""The contract of every engine: what it is asked (requests), what it gives back (results), and the class `Engine` itself.

    request = GenerateRequest(prompt="2 + 2 =", add_special_tokens=True, max_new_tokens=8)
    for batch in engine.generate([request]):
        for result in batch:
            result.key == request.key, result.text

An engine gets all its requests at once and yields results in batches, in an order of its own; the key tells which result
answers which request. One engine object serves every rung of a run, so a gap between rungs cannot come from dtype, tokenizer
or chat template. This module needs no torch.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from perplexity_lies.digests import content_key, without_defaults

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`, the form that transformers' chat templates take."""

FinishReason = Literal["stop", "stop_string", "length"]
"""Why a reply ended: at an end token, at a stop string, or because its budget was used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How to load a checkpoint. The run's manifest records them."""

    device: str = "auto"
    """`auto` (cuda where there is one, else cpu), `cpu`, `cuda`, `cuda:N`."""
    dtype: str = "auto"
    """`auto` (float32 on CPU, the stored dtype on CUDA), `float32`, `bfloat16`, `float16`."""
    batch_tokens: int = 8192
    """Most prompt tokens in one forward pass."""
    slots: int = 64
    """Most rows decoded together."""
    chat_template_args: str = ""
    """What the chat template is given beside the messages (`engines.template`): canonical JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Wanted: the log-likelihood of `continuation_ids` after `context_ids`."""

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    key: str = field(default="", init=False, compare=False, repr=False)
    """Hash of the request's content; see `_set_key`."""

    def __post_init__(self) -> None:
        _set_key(self, "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """The log-likelihood of one continuation."""

    key: str
    """The key of its request."""
    loglikelihood_nats: float
    """Sum over the tokens of the continuation."""
    is_greedy: bool
    """Whether every token of the continuation is the most likely one."""
    context_tokens: int
    continuation_tokens: int
    truncated_tokens: int = 0
    """Tokens cut from the left because context and continuation did not fit."""
    error: str = ""
    """Why there is no log-likelihood (`loglikelihood_nats` then means nothing); empty when there is one."""
    failed: bool = False
    """Whether trying again might help. False for a request that cannot be run at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Wanted: a reply to `prompt`, which already contains the chat template, if any (`Engine.render_chat`)."""

    prompt: str
    add_special_tokens: bool
    """Whether the tokenizer adds its special tokens. False after a chat template, which has placed them."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these strings."""
    sampling: Sampling = Sampling()
    seed: int = 0
    """Random seed of this row; the rest of the batch does not affect it."""
    max_prompt_tokens: int | None = None
    """Cut the prompt from the left to this many tokens, as lm-eval does; None never cuts, as evalscope."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) pairs for an engine that applies the chat template itself (`Engine.takes_messages`).

    `prompt` is then their transcript.
    """
    choices: tuple[str, ...] = ()
    """The reply can only be one of these texts (`Engine.why_no_choices`); empty leaves it free."""
    key: str = field(default="", init=False, compare=False, repr=False)
    """Hash of the request's content; see `_set_key`."""

    def __post_init__(self) -> None:
        _set_key(self, "generate")


def _set_key(request: ScoreRequest | GenerateRequest, kind: str) -> None:
    """Give a request its key: equal requests have equal keys, and journals find their results by it.

    Fields at their default are left out, so a field added later leaves today's keys (and journals) as they are. The key is
    computed once, here, because a run reads it several times for each request.
    """
    object.__setattr__(request, "key", content_key([kind, without_defaults(request)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """One reply."""

    key: str
    """The key of its request."""
    text: str
    """Without special tokens, cut before the stop string."""
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    """Tokens generated, the end token included."""
    token_ids: tuple[int, ...] = ()
    """Ids of the reply as generated, end token and stop string included; empty where the engine does not know them."""
    truncated_tokens: int = 0
    """Tokens cut from the left of the prompt."""
    beyond_context_tokens: int = 0
    """Tokens at positions beyond the checkpoint's stated context."""
    smallest_margin: float | None = None
    """Smallest lead, in logits, of a greedy token over the second best. None for a sampled reply, and when unknown."""
    choices_mass: float | None = None
    """Probability, at the first token, of all tokens that begin one of the request's `choices`; None when unknown."""
    error: str = ""
    """Why there is no reply; empty when there is one."""
    failed: bool = False
    """Whether trying again might help. False for a request that cannot be run at all."""


def unscored(request: ScoreRequest, why: str, *, failed: bool = False) -> ScoreResult:
    """The result of a request that has no log-likelihood."""
    return ScoreResult(
        key=request.key, loglikelihood_nats=0.0, is_greedy=False, context_tokens=len(request.context_ids),
        continuation_tokens=len(request.continuation_ids), error=why, failed=failed,
    )  # fmt: skip


Finished = Callable[[str], bool]
"""Tells whether the result with this key is already on disk."""


def nothing_finished(key: str) -> bool:
    """The `Finished` of a fresh run: no result is on disk."""
    return False


class CannotShare(Exception):
    """Why the state of a checkpoint cannot be forked, or cannot be batched in slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownModel:
    """The model an engine has loaded. The artifact guard calls it directly and compares with what the engine answers."""

    model: Any
    """A transformers causal LM in eval mode, on its device."""
    dtype: str
    """Dtype of the weights: `float32`, `bfloat16`, `float16`."""
    threads: int
    """CPU threads the engine computes with."""
    why_not_cached: str = ""
    """Why the engine runs no single token from the model's cache; empty where it does."""


class Engine(abc.ABC):
    """A loaded checkpoint.

    The torch engine plans its batches over all requests and runs a batch whole if any result of it is missing. Where an
    earlier run was killed then changes no result, not even in the last bit.
    """

    tokenizer: Any
    """A transformers tokenizer; None where the tokenizer of a server is not known."""

    @property
    @abc.abstractmethod
    def context_tokens(self) -> int:
        """The checkpoint's stated context, found by lm-eval's rule."""

    @property
    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the engine chose when it loaded (device, dtype, threads ...), for the manifest."""

    @abc.abstractmethod
    def score(
        self, requests: Sequence[ScoreRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[ScoreResult]]:
        """Batches of results in the engine's own order; requests with equal keys get one result."""

    @abc.abstractmethod
    def generate(
        self, requests: Sequence[GenerateRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[GenerateResult]]:
        """Batches of results in the engine's own order; requests with equal keys get one result."""

    @abc.abstractmethod
    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids. None: the tokenizer decides, except that a text which opens with BOS gets no second (lm-eval's rule)."""

    @abc.abstractmethod
    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Messages in the checkpoint's chat template; `role: content` lines where it has none (evalscope's rule)."""

    @property
    @abc.abstractmethod
    def has_chat_template(self) -> bool:
        """Whether `render_chat` uses a template of the checkpoint."""

    @property
    def shown(self) -> ShownModel | None:
        """The loaded model, for an engine that holds it in this process; None otherwise. The guard sees more with it."""
        return None

    @property
    def why_no_score(self) -> str:
        """Why this engine cannot give log-likelihoods; empty when it can."""
        return ""

    @property
    def why_no_choices(self) -> str:
        """Why this engine cannot hold a reply to `GenerateRequest.choices`; empty when it can."""
        return "this engine has no constrained decoding"

    @property
    def takes_messages(self) -> bool:
        """Whether chats are sent as messages because the server applies the template."""
        return False

    @contextlib.contextmanager
    def fewer_slots(self, slots: int) -> Iterator[None]:
        """Inside, at most `slots` rows decode together, so that a few rows take every path of many.

        Changes nothing in an engine that does not choose how many do.
        """
        yield
