"""The vLLM engine: `vllm.LLM` in this process. Scores are vLLM's prompt log-probabilities, replies come from its scheduler.

vLLM reads the checkpoint's files itself and runs only its own architectures. It does not use its prefix cache for prompt
log-probabilities, so a shared header is computed again for every continuation. End tokens and decoding are those of the torch
engine. This is the only file that imports `vllm`, which needs an environment of its own (docs/engines.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
import vllm
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from perplexity_lies.checkpoint.lookup import Checkpoint
from perplexity_lies.engines import tokens
from perplexity_lies.engines.base import (
    Engine,
    EngineOptions,
    Finished,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    Message,
    ScoreRequest,
    ScoreResult,
    nothing_finished,
    unscored,
)
from perplexity_lies.engines.decoding import holds_stop, text_before_stop
from perplexity_lies.engines.loading import load_tokenizer, resolve_dtype
from perplexity_lies.errors import CheckpointError, MissingError, UsageError

WHOLE = RequestOutputKind.FINAL_ONLY

Ask = tuple[list[int], vllm.SamplingParams]
"""Prompt ids, and vLLM's parameters for them."""


class VllmEngine(Engine):
    """A vLLM model in this process."""

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self.checkpoint, self.options = checkpoint, options
        self.device = _device(options.device)
        _refuse_strays(checkpoint)
        dtype = resolve_dtype(options.dtype, torch.device(self.device), checkpoint.dtype)
        self.tokenizer = load_tokenizer(checkpoint)
        self.llm = _load(checkpoint, options, dtype, eager=self.device == "cpu")
        config = self.llm.model_config
        self.dtype = str(config.dtype).removeprefix("torch.")
        self.embedded = int(config.get_vocab_size())
        self.end_ids = tokens.end_ids(
            _generation_config(checkpoint), config.hf_text_config, self.tokenizer, self.embedded
        )

    @property
    def context_tokens(self) -> int:
        return int(self.llm.model_config.max_model_len)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "engine": "vllm",
            "device": self.device,
            "dtype": self.dtype,
            "batch_tokens": self.options.batch_tokens,
            "slots": self.options.slots,
            "vllm": vllm.__version__,
        }

    @property
    def has_chat_template(self) -> bool:
        return tokens.has_template(self.tokenizer)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return tokens.encode(self.tokenizer, text, add_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        return tokens.render_chat(self.tokenizer, messages, add_generation_prompt)

    def score(
        self, requests: Sequence[ScoreRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[ScoreResult]]:
        """Results as vLLM finishes them. Inputs are cut to one token less than the context: vLLM always generates one."""
        wanted = {request.key: request for request in requests if not finished(request.key)}
        once = vllm.SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False, output_kind=WHOLE
        )
        refused = {key: why for key, request in wanted.items() if (why := self._why_not_scored(request))}
        if refused:
            yield [unscored(wanted[key], why) for key, why in refused.items()]
        asks = {key: (list(self._kept(request)), once) for key, request in wanted.items() if key not in refused}
        yield from self._run(asks, lambda key, output: self._scored(wanted[key], output))

    def _why_not_scored(self, request: ScoreRequest) -> str:
        ids = (*request.context_ids, *request.continuation_ids)
        return tokens.why_not_scored(request, self.context_tokens - 2) or tokens.why_not_embedded(
            self.tokenizer, ids, self.embedded
        )

    def generate(
        self, requests: Sequence[GenerateRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[GenerateResult]]:
        wanted = {request.key: request for request in requests if not finished(request.key)}
        ids = {key: self.encode(request.prompt, request.add_special_tokens) for key, request in wanted.items()}
        kept = {key: tokens.keep_last(ids[key], request.max_prompt_tokens) for key, request in wanted.items()}
        refused = [
            GenerateResult(
                key=key, text="", finish_reason="length", prompt_tokens=len(prompt), completion_tokens=0,
                truncated_tokens=len(ids[key]) - len(prompt), error=self._refusal(prompt),
                beyond_context_tokens=max(0, len(prompt) - self.context_tokens),
            )
            for key, prompt in kept.items()
            if self._refusal(prompt)
        ]  # fmt: skip
        if refused:
            yield refused
        asks = {
            key: (prompt, self._params(wanted[key], len(prompt)))
            for key, prompt in kept.items()
            if not self._refusal(prompt)
        }
        yield from self._run(asks, lambda key, output: self._reply(wanted[key], len(ids[key]), output))

    @property
    def why_no_choices(self) -> str:
        return ""

    def _refusal(self, prompt: Sequence[int]) -> str:
        """Why vLLM cannot run a prompt; empty when it can."""
        if not prompt:
            return "the prompt has no tokens"
        if len(prompt) >= self.context_tokens:
            return f"the prompt has {len(prompt)} tokens and vLLM's context {self.context_tokens}"
        return tokens.why_not_embedded(self.tokenizer, prompt, self.embedded)

    def _params(self, request: GenerateRequest, prompt_tokens: int) -> vllm.SamplingParams:
        sampling = request.sampling
        return vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=request.seed if sampling.temperature > 0 else None,
            logprobs=None if sampling.temperature > 0 else 2,
            max_tokens=min(request.max_new_tokens, self.context_tokens - prompt_tokens),
            stop=list(request.stop),
            structured_outputs=held_to(request.choices),
            skip_special_tokens=not request.stop,  # a stop string may be a special token; the text is decoded here
            spaces_between_special_tokens=False,
            stop_token_ids=sorted(self.end_ids),
            ignore_eos=True,
            output_kind=WHOLE,
        )

    def _kept(self, request: ScoreRequest) -> tuple[int, ...]:
        """Context and continuation, cut from the left to what vLLM takes."""
        return (*request.context_ids, *request.continuation_ids)[-(self.context_tokens - 1) :]

    def _scored(self, request: ScoreRequest, output: Any) -> ScoreResult:
        kept = self._kept(request)
        n = len(request.continuation_ids)
        found = list(zip(kept[-n:], output.prompt_logprobs[-n:], strict=True))
        nats = [place[token].logprob for token, place in found]
        likeliest = [place[token].logprob >= max(top.logprob for top in place.values()) for token, place in found]
        return ScoreResult(
            key=request.key,
            loglikelihood_nats=math.fsum(nats),
            is_greedy=all(likeliest),
            context_tokens=len(kept) - n,
            continuation_tokens=n,
            truncated_tokens=len(request.context_ids) + len(request.continuation_ids) - len(kept),
        )

    def _reply(self, request: GenerateRequest, prompt_tokens: int, output: Any) -> GenerateResult:
        (row,) = output.outputs
        reason: FinishReason = "length"
        if row.finish_reason == "stop":
            reason = "stop_string" if isinstance(row.stop_reason, str) else "stop"
        elif request.stop and holds_stop(self.tokenizer, row.token_ids, request.stop):
            reason = "stop_string"  # across a special token, which vLLM's text has and the reply has not
        kept = len(output.prompt_token_ids)
        return GenerateResult(
            key=request.key,
            text=text_before_stop(self.tokenizer, row.token_ids, request.stop),
            finish_reason=reason,
            prompt_tokens=kept,
            completion_tokens=len(row.token_ids),
            token_ids=tuple(row.token_ids),
            truncated_tokens=prompt_tokens - kept,
            smallest_margin=smallest_margin(row.logprobs),
            beyond_context_tokens=max(0, kept + len(row.token_ids) - self.context_tokens),
        )

    def _run(self, asks: dict[str, Ask], read: Callable[[str, Any], Any]) -> Iterator[list[Any]]:
        """Give all requests to vLLM's scheduler; yield what has finished after each of its steps."""
        engine = self.llm.llm_engine
        waiting = set(asks)
        for key, (ids, params) in asks.items():
            engine.add_request(key, {"prompt_token_ids": ids}, params)
        try:
            while engine.has_unfinished_requests():
                ended = [output for output in engine.step() if output.finished]
                waiting -= {output.request_id for output in ended}
                if ended:
                    yield [read(output.request_id, output) for output in ended]
        finally:
            if waiting:
                engine.abort_request(list(waiting))


def held_to(choices: Sequence[str]) -> StructuredOutputsParams | None:
    """vLLM's own structured choice, each text also after one space, as the torch engine has it; None leaves a reply free."""
    return (
        StructuredOutputsParams(choice=[text for choice in choices for text in (choice, f" {choice}")])
        if choices
        else None
    )


def smallest_margin(places: Sequence[Mapping[int, Any]] | None) -> float | None:
    """Smallest lead of a greedy reply's token over the second best, in logits. None for a sampled reply.

    `places`: vLLM's log-probabilities of the two best tokens (or more) at each position. Their difference is that of the logits.
    """
    if not places:
        return None
    best = (sorted((token.logprob for token in place.values()), reverse=True) for place in places)
    return float(min((first - second for first, second, *_ in best), default=0.0))


def _refuse_strays(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for safetensors beside the measured ones: vLLM loads every such file in the directory."""
    stray = [file for file in checkpoint.unread_weights if file.endswith(".safetensors")]
    if stray:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} cannot be run by vLLM as it lies",
            found=f"{', '.join(stray[:5])}: beside the weights that were measured, and vLLM would load them too",
            mend="move them away, or --engine torch",
        )


def _device(name: str) -> str:
    """The device that the installed vLLM was built for. Raises UsageError when `name` is another one."""
    found = str(current_platform.device_type)
    if name not in ("auto", found):
        raise UsageError(
            f"--device {name} cannot be had with --engine vllm", found=f"this vLLM runs on {found or 'no device here'}",
            mend="leave --device out (CUDA_VISIBLE_DEVICES picks the GPU)",
        )  # fmt: skip
    if not found:
        raise MissingError(
            "--engine vllm cannot start",
            found="the installed vLLM sees no device that it was built for",
            mend="--engine torch, or a vLLM built for this machine (docs/engines.md)",
        )
    return found


def _load(checkpoint: Checkpoint, options: EngineOptions, dtype: torch.dtype, *, eager: bool) -> vllm.LLM:
    try:
        return vllm.LLM(
            model=str(checkpoint.path),
            dtype=dtype,
            trust_remote_code=checkpoint.trust_remote_code,
            load_format="auto" if checkpoint.allow_pickle else "safetensors",
            generation_config="vllm",  # the suite's settings, not the checkpoint's
            max_num_seqs=options.slots,
            max_num_batched_tokens=options.batch_tokens,
            enforce_eager=eager,
            seed=0,
        )
    except (ValueError, RuntimeError, OSError, KeyError, NotImplementedError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} ({checkpoint.model_type}) cannot be loaded by vLLM",
            found=" ".join(str(error).split())[:300] or type(error).__name__,
            mend=("--engine torch", "the log of vLLM: logs/loading.log in the run directory"),
        ) from error


def _generation_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's generation_config.json; None where there is none."""
    if checkpoint.path is None or not (checkpoint.path / "generation_config.json").is_file():
        return None
    return transformers.GenerationConfig.from_pretrained(checkpoint.path)
