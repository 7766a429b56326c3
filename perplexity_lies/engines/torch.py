"""The torch engine: any `AutoModelForCausalLM` checkpoint on CPU or CUDA, correct before fast.

Rows share a batch only when they have the same number of tokens, so no pad token is ever fed: what is true of attention
with positions and masks is then true of recurrent and hybrid students too. Scoring follows lm-eval's `HFLM`
(tokenisation, truncation from the left, greedy flag); greedy generation gives the tokens of HF `generate` one row at a time.

Knows nothing of protocols, items or the disk.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers

from perplexity_lies.checkpoint import Checkpoint
from perplexity_lies.engines.base import (
    Engine,
    EngineOptions,
    Finished,
    GenerateRequest,
    GenerateResult,
    Message,
    ScoreRequest,
    ScoreResult,
    nothing_finished,
)
from perplexity_lies.engines.decoding import Row, decode_batch
from perplexity_lies.engines.loading import LEARNED_POSITIONS, load_model, load_tokenizer

logger = logging.getLogger(__name__)

CONTEXT_WHEN_UNSTATED_TOKENS = 2048
"""lm-eval's default where neither config nor tokenizer states a context."""


SMALL_PARAMETERS = 10_000_000
"""Below this a second CPU thread costs more in waiting than it brings: 1 ms a step against 25 ms on two contended cores."""


class TorchEngine(Engine):
    """See the module."""

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.tokenizer = load_tokenizer(checkpoint)
        self.model = load_model(checkpoint, options)
        self.device = next(self.model.parameters()).device
        self.end_ids = _end_ids(self.model, self.tokenizer)
        self.threads = 1 if checkpoint.parameters < SMALL_PARAMETERS else torch.get_num_threads()
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        _warn_of_unused_generation_settings(self.model)

    @property
    def context_tokens(self) -> int:
        config = self.model.config
        config = getattr(config, "text_config", None) or config
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
        stated = getattr(self.tokenizer, "model_max_length", None)
        if stated is not None and stated < 1_000_000_000:
            return int(stated)
        return CONTEXT_WHEN_UNSTATED_TOKENS

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "engine": "torch",
            "device": self.device.type,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "batch_tokens": self.options.batch_tokens,
            "slots": self.options.slots,
            "threads": self.threads,
            "attention": getattr(self.model.config, "_attn_implementation", None) or "none",
        }

    @property
    def has_chat_template(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        if add_special_tokens is None:
            bos = getattr(self.tokenizer, "bos_token", None)
            add_special_tokens = not (bos and text.startswith(bos))
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        if not self.has_chat_template:
            return "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        rendered: str = self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return rendered

    def score(self, requests: Sequence[ScoreRequest], finished: Finished = nothing_finished) -> Iterator[list[ScoreResult]]:
        distinct = {request.key: request for request in requests}
        lengths = {key: min(len(r.context_ids) + len(r.continuation_ids), self.context_tokens + 1) for key, r in distinct.items()}
        for batch in _equal_length_batches(lengths, self.options.batch_tokens, self.options.batch_tokens):
            if not all(map(finished, batch)):
                with _threads(self.threads):
                    results = self._score_batch([(key, distinct[key]) for key in batch], lengths[batch[0]])
                yield results

    @torch.inference_mode()
    def _score_batch(self, batch: list[tuple[str, ScoreRequest]], length: int) -> list[ScoreResult]:
        whole = [(*request.context_ids, *request.continuation_ids)[-length:] for _, request in batch]
        continuation_tokens = [min(len(request.continuation_ids), length - 1) for _, request in batch]
        keep = max(continuation_tokens)
        input_ids = torch.tensor([ids[:-1] for ids in whole], device=self.device)
        logits = self._logits(input_ids, keep)
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        targets = torch.tensor([ids[-keep:] for ids in whole], device=self.device)
        of_target = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1).double().cpu()
        hits = (logprobs.argmax(-1) == targets).cpu()
        return [
            ScoreResult(
                key=key,
                loglikelihood_nats=float(of_target[i, keep - n :].sum()),
                is_greedy=bool(hits[i, keep - n :].all()),
                context_tokens=length - n,
                continuation_tokens=n,
                truncated_tokens=len(request.context_ids) + len(request.continuation_ids) - length,
            )
            for i, ((key, request), n) in enumerate(zip(batch, continuation_tokens, strict=True))
        ]

    def _logits(self, input_ids: torch.Tensor, keep: int) -> torch.Tensor:
        """[batch, time] -> logits of the last `keep` positions, [batch, keep, vocabulary]."""
        if self._takes_logits_to_keep:
            logits = self.model(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits
        else:
            logits = self.model(input_ids=input_ids, use_cache=False).logits
        return logits[:, -keep:, :]  # type: ignore[no-any-return]

    def generate(
        self, requests: Sequence[GenerateRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[GenerateResult]]:
        rows = {request.key: self._row(request) for request in requests}
        refused = [row for row in rows.values() if self._refusal(row)]
        if refused:
            yield [row.refused(self._refusal(row)) for row in refused]
        runnable = {key: len(row.prompt_ids) for key, row in rows.items() if not self._refusal(row)}
        for batch in _equal_length_batches(runnable, self.options.batch_tokens, self.options.slots):
            if not all(map(finished, batch)):
                with _threads(self.threads):
                    results = decode_batch(
                        self.model, self.tokenizer, [rows[key] for key in batch], self.end_ids, self.context_tokens
                    )
                yield results

    def _row(self, request: GenerateRequest) -> Row:
        ids = self.encode(request.prompt, request.add_special_tokens)
        kept = ids if request.max_prompt_tokens is None else ids[-request.max_prompt_tokens :]
        return Row(request=request, prompt_ids=tuple(kept), truncated_tokens=len(ids) - len(kept))

    def _refusal(self, row: Row) -> str:
        """Why the row cannot be run; empty when it can."""
        if not row.prompt_ids:
            return "the prompt has no tokens"
        if self.model.config.model_type in LEARNED_POSITIONS and len(row.prompt_ids) >= self.context_tokens:
            return f"the prompt has {len(row.prompt_ids)} tokens and the checkpoint {self.context_tokens} positions"
        return ""


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _equal_length_batches(lengths: dict[str, int], batch_tokens: int, most_rows: int) -> Iterator[list[str]]:
    """Keys in batches of one length each, longest first; the order within a length is the order given."""
    by_length: dict[int, list[str]] = {}
    for key, length in lengths.items():
        by_length.setdefault(length, []).append(key)
    for length in sorted(by_length, reverse=True):
        keys = by_length[length]
        rows = max(1, min(most_rows, batch_tokens // max(1, length)))
        for start in range(0, len(keys), rows):
            yield keys[start : start + rows]


def _end_ids(model: transformers.PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a reply, as HF `generate` finds them; the tokenizer's own where the checkpoint states none."""
    stated: int | Iterable[int] | None = getattr(model.generation_config, "eos_token_id", None)
    if stated is None:
        stated = getattr(model.config, "eos_token_id", None)
    if stated is None:
        stated = tokenizer.eos_token_id
    if stated is None:
        return frozenset()
    return frozenset([stated] if isinstance(stated, int) else stated)


def _warn_of_unused_generation_settings(model: transformers.PreTrainedModel) -> None:
    """A checkpoint's own generation settings change what greedy means: say so where they are left out."""
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": None, "suppress_tokens": None}
    found = {
        name: getattr(model.generation_config, name, None)
        for name, value in neutral.items()
        if getattr(model.generation_config, name, None) not in (value, None)
    }
    if found:
        logger.warning("generation_config.json asks for %s; the suite's protocol settings are used instead", found)
