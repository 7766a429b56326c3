"""Tokenizer and config rules that all engines share: ids of a text, a chat as text, the stated context, the end tokens.

They follow lm-eval's `HFLM` (BOS and context), evalscope (chats without a template) and HF `generate` (end tokens). Because
every engine uses them, engines differ in how they compute and not in what they are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

from perplexity_lies.engines.base import Message, ScoreRequest
from perplexity_lies.errors import CheckpointError

CONTEXT_WHEN_UNSTATED_TOKENS = 2048
"""lm-eval's default when neither config nor tokenizer states a context."""

UNSTATED_TOKENS = 1_000_000_000
"""A tokenizer without a stated context has a `model_max_length` above this in transformers."""


def has_template(tokenizer: Any) -> bool:
    """Whether the checkpoint has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def encode(tokenizer: Any, text: str, add_special_tokens: bool | None = None) -> list[int]:
    """Token ids. None: the tokenizer decides, except that a text which opens with BOS gets no second (lm-eval's rule)."""
    if add_special_tokens is None:
        bos = getattr(tokenizer, "bos_token", None)
        add_special_tokens = not (bos and text.startswith(bos))
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def spell(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, decoded by itself."""
    return [tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False) for token in ids]


def transcript(messages: Sequence[Message]) -> str:
    """A chat as `role: content` lines: evalscope's rule for checkpoints without a template."""
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


def render_chat(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """Messages in the checkpoint's chat template, or as a transcript where it has none.

    Raises CheckpointError when the template refuses them.
    """
    if not has_template(tokenizer):
        return transcript(messages)
    try:
        rendered: str = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's chat template does not take {' and '.join(m['role'] for m in messages)} messages",
            found=str(error),
            mend="mend chat_template.jinja in the checkpoint",
        ) from error
    return rendered


def context_tokens(config: Any, tokenizer: Any) -> int:
    """The stated context in tokens by lm-eval's rule: from the config (may be None), else from the tokenizer."""
    config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    stated = getattr(tokenizer, "model_max_length", None)
    return int(stated) if stated is not None and stated < UNSTATED_TOKENS else CONTEXT_WHEN_UNSTATED_TOKENS


def keep_last(ids: Sequence[int], most: int | None) -> list[int]:
    """The last `most` of `ids`; all where `most` is None."""
    return list(ids) if most is None else list(ids[max(0, len(ids) - most) :])


def why_not_embedded(tokenizer: Any, ids: Iterable[int], rows: int) -> str:
    """Why a checkpoint with `rows` embeddings cannot be given `ids`; empty where it can."""
    beyond = next((token for token in ids if not 0 <= token < rows), None)
    if beyond is None:
        return ""
    spelled = "" if tokenizer is None or beyond < 0 else f" ({spell(tokenizer, [beyond])[0]!r})"
    return f"the tokenizer gives token {beyond}{spelled} and the checkpoint has embeddings for 0 to {rows - 1}"


def why_not_scored(request: ScoreRequest, most_tokens: int) -> str:
    """Why a log-likelihood cannot be had where a continuation may have `most_tokens`; empty where it can.

    lm-eval refuses both too. Scoring only the last tokens would give another answer's log-likelihood.
    """
    if not request.context_ids:
        return "no token comes before the answer"
    if not request.continuation_ids:
        return "the answer has no token"
    count = len(request.continuation_ids)
    return f"the answer has {count} tokens and the context holds {most_tokens} of one" if count > most_tokens else ""


def end_ids(generation_config: Any, config: Any, tokenizer: Any, rows: int) -> frozenset[int]:
    """Tokens that end a reply by HF `generate`'s rule; the tokenizer's EOS where the checkpoint states none.

    Raises CheckpointError for one that is no token of a checkpoint with `rows` embeddings: no reply would ever end there.
    """
    holders = (generation_config, config, tokenizer)
    all_stated: list[Any] = [getattr(holder, "eos_token_id", None) for holder in holders]
    stated = next((found for found in all_stated if found is not None), ())
    listed = list(stated) if isinstance(stated, list | tuple) else [stated]
    for token in listed:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < rows:
            raise CheckpointError(
                f"the checkpoint's end token cannot end a reply: eos_token_id {token!r}",
                found=f"embeddings for tokens 0 to {rows - 1}",
                mend='state its id in generation_config.json (else in config.json, else the tokenizer counts): "eos_token_id": 2',
            )
    return frozenset(listed)
