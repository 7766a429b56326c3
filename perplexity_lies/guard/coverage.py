"""What the guard does not look at, in plain sentences: for `plies doctor CHECKPOINT` and for the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perplexity_lies.guard.as_a_run import CUT_CONTEXT_TOKENS, LONG_PROMPT_TOKENS, LONG_REPLY_TOKENS
from perplexity_lies.guard.sampling import SAMPLED_TOKENS
from perplexity_lies.guard.subject import Check

NOT_LOOKED_AT = "not looked at"
"""Name under which the manifest keeps these sentences, beside the checks."""

SHARED = "what every path shares: wrong weights, config or tokenizer files, a wrong transformers implementation"
SIZES = (
    f"prompts of more than {LONG_PROMPT_TOKENS} tokens, replies of more than {LONG_REPLY_TOKENS} (sampled: {SAMPLED_TOKENS}), "
    f"contexts of more than {CUT_CONTEXT_TOKENS} tokens to their end"
)
SUITES = "what stands in a suite's prompts, and how answers are read in replies"
UNSHOWN = (
    "inside this engine, which does not show its model: from outside it is asked in company and alone, by log-likelihood and by "
    "replies; its logits, the positions of long replies and the distribution it samples from are unknown"
)


def not_looked_at(checks: Sequence[Check], *, shown: bool) -> Iterator[str]:
    """What no check looked at: always, for this engine, and because a check could not be made."""
    yield SHARED
    yield SIZES
    yield SUITES
    if not shown:
        yield UNSHOWN
    left = [check.name for check in checks if check.passed is None]
    if left:
        yield f"by checks that could not be made: {', '.join(left)}"
