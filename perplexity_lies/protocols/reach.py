"""Whether a reply can be right at all: what tokenizer and budget allow, whatever the checkpoint."""

from __future__ import annotations

from perplexity_lies.engines.base import Engine


def never_replied(engine: Engine, target: str, max_new_tokens: int) -> str:
    """Why no reply can hold `target` to the letter; empty where one can, or where the tokenizer is not known."""
    if engine.tokenizer is None:
        return ""
    spellings = [engine.encode(text, False) for text in (target, f" {target}")]
    if not any(target in engine.tokenizer.decode(ids, skip_special_tokens=True) for ids in spellings):
        return "the tokenizer cannot spell the reference"
    if min(map(len, spellings)) > max_new_tokens:
        return "the reference takes more tokens than the reply may have"
    return ""
