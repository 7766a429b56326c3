"""A stage's documents by number, from what its recipe names: the miniature world.

Knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distill.data.encode import Encoder
from distill.data.order import interleaved
from distill.data.packing import Tokens
from distill.recipe import DataConfig
from perplexity_lies.errors import UsageError
from suites.miniature.stream import make_document
from suites.miniature.world import make_world

Documents = Callable[[int], Tokens]


def miniature(config: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, held_out: frozenset[str]) -> Documents:
    """The miniature world's stream `seed`; no question of `held_out` is in it."""
    world, encoder, mixture = make_world(), Encoder(tokenizer), config.mixture
    assert mixture is not None  # DataConfig holds it
    return lambda index: encoder.document(make_document(world, mixture, seed, index, held_out))


def open_documents(
    data: Mapping[str, DataConfig],
    shares: str | Mapping[str, float],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    cache: Path,
    tokens_needed: int,
    held_out: frozenset[str],
) -> Documents:
    """A function from a document's number to its tokens, for `shares` of the documents of `data`."""
    shares = {shares: 1.0} if isinstance(shares, str) else shares
    if not shares or min(shares.values()) <= 0:
        raise UsageError("shares of the data must be above 0", found=str(dict(shares)))
    sources = [miniature(data[name], seed, tokenizer, held_out) for name in shares]
    place = interleaved(list(shares.values()))

    def document(index: int) -> Tokens:
        source, number = place(index)
        return sources[source](number)

    return document
