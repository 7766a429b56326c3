"""The endpoint engine: scores and generates with any OpenAI-compatible server, `slots` requests at a time.

Log-likelihoods come from POST /completions with `echo` and `logprobs` (lm-eval's `local-completions`). Prompts go as token
ids where the server takes them, else as text whose tokens, counted and spelled by the server, must be the intended ones.
One token is generated and dropped, since servers differ in what zero tokens mean. A server without echo can only generate:
/completions with the rendered prompt where the tokenizer is known, else /chat/completions with the messages. `ability`
finds out which when the engine opens.

A request that fails at every attempt becomes a result with its reason, never a number, but only once the server has
answered a later request. A server that answers nothing any more ends the run; the same command continues it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from perplexity_lies.checkpoint.client import LOCKED, Client, Failed, Patience, Refused, locked_out
from perplexity_lies.checkpoint.lookup import Checkpoint
from perplexity_lies.engines import tokens
from perplexity_lies.engines.ability import NO_TOKENIZER, PROBE, find_ability
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
    unscored,
)
from perplexity_lies.engines.decoding import special_texts
from perplexity_lies.engines.loading import load_tokenizer
from perplexity_lies.engines.replies import (
    an_object,
    letters,
    put_elsewhere,
    read_logprobs,
    read_reply,
    tokens_not_read,
    usage_of,
)
from perplexity_lies.errors import MissingError

PROBE_ATTEMPTS = 3
"""Attempts for each form of request when the engine opens: a server that fails them all should be reported soon."""

HELD_FAILURES = 16
"""After this many failures in a row the engine checks that the server still answers."""

BORDER_TOKENS = 2
"""Tokens by which a text within a chat may be shorter than by itself."""

Result = ScoreResult | GenerateResult


@dataclass(frozen=True, slots=True)
class Job:
    """One request in the form in which it is sent."""

    key: str
    path: str
    body: dict[str, Any]
    read: Callable[[Any], Result]
    """The result in a reply. Raises one of `MALFORMED` for another form of reply."""
    lost: Callable[[str, bool], Result]
    """The result without a reply, from (reason, whether it failed rather than was refused)."""


class EndpointEngine(Engine):
    """A served model; the module's docstring says how it is used."""

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions, patience: Patience | None = None) -> None:
        assert checkpoint.served is not None
        self.served, self.options, self.patience = checkpoint.served, options, patience or Patience()
        self.tokenizer = load_tokenizer(checkpoint) if checkpoint.path else None
        self._context_tokens = self.served.context_tokens or self._stated_context(checkpoint)
        few = replace(self.patience, attempts=min(PROBE_ATTEMPTS, self.patience.attempts))
        with contextlib.closing(self._connect(few)) as client:
            self.ability = find_ability(client, self.served.model, self.tokenizer)

    def _connect(self, patience: Patience) -> Client:
        return Client(self.served.url, patience, connections=self.options.slots)

    def _stated_context(self, checkpoint: Checkpoint) -> int:
        config = None
        if checkpoint.path and (checkpoint.path / "config.json").is_file():
            # Plain values: transformers here need not know this type of model.
            text = (checkpoint.path / "config.json").read_text(encoding="utf-8")
            config = json.loads(text, object_hook=lambda found: SimpleNamespace(**found))
        return tokens.context_tokens(config, self.tokenizer)

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "engine": "endpoint",
            "device": "of the server",
            "dtype": "unknown",
            "slots": self.options.slots,
            "prompts": self.ability.prompts,
        }

    @property
    def has_chat_template(self) -> bool:
        return not self.takes_messages and tokens.has_template(self.tokenizer)

    @property
    def takes_messages(self) -> bool:
        return self.ability.prompts == "messages"

    @property
    def why_no_score(self) -> str:
        return self.ability.why_no_score

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of `text`. Raises MissingError where the tokenizer is not known."""
        if self.tokenizer is None:
            raise MissingError(f"{self.served.model} at {self.served.url} cannot be given tokens", found=NO_TOKENIZER)
        return tokens.encode(self.tokenizer, text, add_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        if self.takes_messages:
            return tokens.transcript(messages)
        return tokens.render_chat(self.tokenizer, messages, add_generation_prompt)

    def score(
        self, requests: Sequence[ScoreRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[ScoreResult]]:
        if self.why_no_score:
            raise MissingError(f"{self.served.url} has no log-likelihoods to give", found=self.why_no_score)
        return self._score(requests, finished)

    def _score(self, requests: Sequence[ScoreRequest], finished: Finished) -> Iterator[list[ScoreResult]]:
        waiting = [request for request in requests if not finished(request.key)]
        refused = {
            r.key: unscored(r, why) for r in waiting if (why := tokens.why_not_scored(r, self.context_tokens - 2))
        }
        if refused:
            yield list(refused.values())
        yield from self._ask_all([request for request in waiting if request.key not in refused], self._score_job)

    def generate(
        self, requests: Sequence[GenerateRequest], finished: Finished = nothing_finished
    ) -> Iterator[list[GenerateResult]]:
        return self._ask_all([request for request in requests if not finished(request.key)], self._generate_job)

    @property
    def why_no_choices(self) -> str:
        return ""

    def prompt_of(self, ids: Sequence[int]) -> list[int] | str:
        """`ids` in the form in which the server takes a prompt: themselves, or their text."""
        if self.ability.prompts == "ids":
            return list(ids)
        added = self.ability.added_ids
        own = ids[len(added) :] if tuple(ids[: len(added)]) == added else ids
        text: str = self.tokenizer.decode(list(own), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _score_job(self, request: ScoreRequest) -> Job:
        whole = (*request.context_ids, *request.continuation_ids)
        kept = whole[-(self.context_tokens - 1) :]
        n = len(request.continuation_ids)
        spelled = letters(tokens.spell(self.tokenizer, kept[-n:])) if self.ability.prompts == "text" else None
        facts: dict[str, Any] = {
            "key": request.key,
            "context_tokens": len(kept) - n,
            "continuation_tokens": n,
            "truncated_tokens": len(whole) - len(kept),
        }

        def read(content: Any) -> ScoreResult:
            words, nats, likeliest = read_logprobs(content, len(kept))
            if spelled is not None and letters(words[-n:]) != spelled:
                raise ValueError(f"other tokens than were meant: {words[-n:]}")
            return ScoreResult(loglikelihood_nats=math.fsum(nats[-n:]), is_greedy=all(likeliest[-n:]), **facts)

        def lost(why: str, failed: bool) -> ScoreResult:
            return ScoreResult(loglikelihood_nats=0.0, is_greedy=False, error=why, failed=failed, **facts)

        body = {"prompt": self.prompt_of(kept), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        return Job(request.key, "/completions", {"model": self.served.model, **body}, read, lost)

    def _generate_job(self, request: GenerateRequest) -> Job:
        most, hidden = request.max_new_tokens, self._hidden(request.stop)
        body = self._decoding(request, hidden)
        ids: list[int] = []
        cut = known = 0
        if self.takes_messages:
            known = self._known_tokens(request)
            path = "/chat/completions"
            body["messages"] = [{"role": role, "content": content} for role, content in request.messages]
            if self.options.chat_template_args:
                body["chat_template_kwargs"] = json.loads(self.options.chat_template_args)
        else:
            path, whole = "/completions", self.encode(request.prompt, request.add_special_tokens)
            ids = tokens.keep_last(whole, request.max_prompt_tokens)
            cut = len(whole) - len(ids)
            as_text = self.ability.prompts == "text" and ids == [
                *self.ability.added_ids,
                *self.encode(request.prompt, False),
            ]
            body["prompt"] = request.prompt if as_text else self.prompt_of(ids)
            if self.served.context_tokens:
                most = max(1, min(most, self.served.context_tokens - len(ids)))
        body["max_tokens"] = most

        def read(content: Any) -> GenerateResult:
            text, reason = read_reply(content, request.stop)
            strayed = request.choices and text.strip() not in {choice.strip() for choice in request.choices}
            for special in hidden:
                text = text.replace(special, "")
            counted = usage_of(content, "prompt_tokens")
            if ids and counted is not None and counted > len(ids):
                raise ValueError(f"the server read {counted} tokens of a prompt of {len(ids)}")
            if ids and counted is not None and counted < len(ids):  # asked again, it would cut again
                return replace(
                    lost(f"the server cut the prompt: it read {counted} of its {len(ids)} tokens", False),
                    truncated_tokens=cut + len(ids) - counted,
                )
            unread = 0 if ids else tokens_not_read(content, request.messages, known)
            prompt_tokens, grown = len(ids) or counted or 0, usage_of(content, "completion_tokens")
            if grown is None:
                grown = len(self.encode(text, False)) if self.tokenizer is not None else 0
            return GenerateResult(
                key=request.key, text=text, finish_reason=reason, prompt_tokens=prompt_tokens, completion_tokens=grown,
                truncated_tokens=cut + unread,
                beyond_context_tokens=max(0, prompt_tokens + grown - self.context_tokens),
                error="the server has no structured choice: its reply is none of them" if strayed else put_elsewhere(content),
            )  # fmt: skip

        def lost(why: str, failed: bool) -> GenerateResult:
            return GenerateResult(
                key=request.key, text="", finish_reason="length", prompt_tokens=len(ids), completion_tokens=0,
                truncated_tokens=cut, error=why, failed=failed,
                beyond_context_tokens=max(0, len(ids) - self.context_tokens),
            )  # fmt: skip

        return Job(request.key, path, body, read, lost)

    def _decoding(self, request: GenerateRequest, hidden: Sequence[str]) -> dict[str, Any]:
        """The model, and how it is to draw and end a reply; `hidden` as `_hidden` finds it."""
        sampling = request.sampling
        body: dict[str, Any] = {"model": self.served.model, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": request.seed}
            body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        if request.stop:
            body["stop"] = list(request.stop)
        if hidden:
            body["skip_special_tokens"] = False
        if request.choices:
            body |= structured_choice(request.choices)
        return body

    def _known_tokens(self, request: GenerateRequest) -> int:
        """Tokens of a chat's messages, without its template, where the tokenizer is known; a few fewer, for their borders."""
        if self.tokenizer is None:
            return 0
        return sum(max(0, len(self.encode(text, False)) - BORDER_TOKENS) for _, text in request.messages)

    def _hidden(self, stop: Sequence[str]) -> tuple[str, ...]:
        """The tokenizer's special tokens if a stop string holds one, else none.

        Servers match stop strings on text without special tokens unless they are told (vLLM's and SGLang's
        `skip_special_tokens`); one that does not know the field refuses it, which becomes a `refused` record.
        """
        specials = special_texts(self.tokenizer) if self.tokenizer is not None and stop else ()
        return specials if any(special in text for special in specials for text in stop) else ()

    def _ask_all(self, requests: Sequence[Any], job_of: Callable[[Any], Job]) -> Iterator[list[Any]]:
        """Yields results as they arrive, with at most `slots` requests under way.

        Holds a failure back until a request sent after it is answered: only then is it the item's own fault.
        """
        waiting = iter({request.key: request for request in requests}.values())
        client = self._connect(self.patience)
        pool = ThreadPoolExecutor(self.options.slots, thread_name_prefix="plies-endpoint")
        running: dict[Future[Result], int] = {}
        held: list[tuple[int, Result]] = []
        """(number of the first request sent after it failed, failed result)."""
        sent = 0
        try:
            while True:
                while len(running) < self.options.slots and (request := next(waiting, None)) is not None:
                    try:
                        job = job_of(request)  # here, since tokenizers are no friends of threads
                    except Exception as error:  # a stranger's tokenizer may raise anything: the item's own fault
                        yield [_unasked(request, f"{type(error).__name__} when its tokens are made: {error}")]
                        continue
                    running[pool.submit(self._answer, client, job)] = sent
                    sent += 1
                if not running:
                    break
                ended = [(running.pop(future), future) for future in wait(running, None, FIRST_COMPLETED).done]
                fatal = [future for _, future in ended if future.exception() is not None]
                done = [(number, future.result()) for number, future in ended if future.exception() is None]
                if fatal:
                    yield [result for _, result in done if not result.failed]
                    fatal[0].result()
                held += [(sent, result) for _, result in done if result.failed]
                answered = [result for _, result in done if not result.failed]
                alive = max((number for number, result in done if not result.failed), default=-1)
                if not answered and len(held) >= HELD_FAILURES:
                    self._check_alive(client, [result for _, result in held])
                    alive = sent
                answered += [result for after, result in held if after <= alive]
                held = [(after, result) for after, result in held if after > alive]
                if answered:
                    yield answered
            if held:
                failures = [result for _, result in held]
                self._check_alive(client, failures)
                yield failures
        finally:
            client.close()  # before the pool: where the caller gave up, no thread waits for its next attempt
            pool.shutdown(cancel_futures=True)

    def _answer(self, client: Client, job: Job) -> Result:
        """The result of one request; raises MissingError where the server lets nobody in any more."""
        try:
            return client.ask(job.path, job.body, job.read, job.key)
        except Failed as error:
            return job.lost(str(error), True)
        except Refused as error:
            if error.status in LOCKED:
                self._check_let_in(client)  # else a filter's verdict on this one prompt
            return job.lost(str(error), False)

    def _simplest(self) -> tuple[str, dict[str, Any]]:
        """(path, body) of the request that says whether the server answers at all."""
        body: dict[str, Any] = {"model": self.served.model, "max_tokens": 1, "temperature": 0}
        if self.takes_messages:
            return "/chat/completions", {**body, "messages": [{"role": "user", "content": PROBE}]}
        return "/completions", {**body, "prompt": self.prompt_of(self.encode(PROBE, False))}

    def _check_let_in(self, client: Client) -> None:
        """Raises MissingError where the server refuses the simplest request as well."""
        try:
            client.ask(*self._simplest(), an_object)
        except Failed:
            return
        except Refused as error:
            if error.status in LOCKED:
                raise locked_out(self.served.url, error) from error

    def _check_alive(self, client: Client, held: Sequence[Result]) -> None:
        """Raises MissingError unless the server still answers the simplest request."""
        try:
            client.ask(*self._simplest(), an_object)
        except (Failed, Refused) as error:
            raise MissingError(
                f"{self.served.url} no longer answers",
                found=(f"{len(held)} requests in a row failed; the last: {held[-1].error}", str(error)),
                mend="when it is up again: the same command continues where it stopped",
            ) from error


def structured_choice(choices: Sequence[str]) -> dict[str, Any]:
    """Fields that hold a reply to one of `choices`: vLLM's from 0.12 on, vLLM's before, and SGLang's.

    A server that has none of them ignores or refuses them; a reply that is no choice is then a record without a score.
    """
    texts = [text for choice in choices for text in (choice, f" {choice}")]
    return {
        "structured_outputs": {"choice": texts},
        "guided_choice": texts,
        "regex": f" ?({'|'.join(re.escape(choice) for choice in choices)})",
    }


def _unasked(request: ScoreRequest | GenerateRequest, why: str) -> Result:
    """The result of a request that could not be sent."""
    if isinstance(request, ScoreRequest):
        return ScoreResult(
            key=request.key, loglikelihood_nats=0.0, is_greedy=False, context_tokens=len(request.context_ids),
            continuation_tokens=len(request.continuation_ids), error=why,
        )  # fmt: skip
    return GenerateResult(
        key=request.key, text="", finish_reason="length", prompt_tokens=0, completion_tokens=0, error=why
    )
