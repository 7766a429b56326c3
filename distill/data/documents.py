"""A stage's documents by number, from the recipe's data: the miniature world, files, datasets, or shares of several.

Every document is a pure function of (data, seed, number), whatever was read before, so training can resume at any of them.
Files and datasets are read as far as a stage needs tokens, in a new order every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from distill.data.cache import Corpus, TokenCache
from distill.data.encode import Conversations, Encoder, text_encoder
from distill.data.order import interleaved, shuffled
from distill.data.packing import Tokens
from distill.miniature.tokenizer import SPECIAL_TOKENS
from distill.recipe.settings import DataConfig
from perplexity_lies.progress import Reporter
from suites.miniature.stream import Document, make_document
from suites.miniature.world import make_world

Documents = Callable[[int], Tokens]

MINIATURE = "miniature"
PROBE_DOCUMENTS = 1000
"""Documents of each source whose mean length turns shares of documents into shares of tokens."""


def miniature_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Document], Tokens]:
    """Encodes the miniature world's documents, for its own word-level tokenizer or any that has a chat template."""
    if all(token in tokenizer.get_vocab() for token in SPECIAL_TOKENS):
        return Encoder(tokenizer).document
    text, chat = text_encoder(tokenizer), Conversations(tokenizer)

    def encode(document: Document) -> Tokens:
        turns = [{"role": "user", "content": document.question}, {"role": "assistant", "content": document.answer}]
        made = chat([(document.kind, turns)]) if document.question else text([(document.kind, document.answer)])
        assert isinstance(made[0], Tokens)  # the world's documents are never empty, and its template was probed
        return made[0]

    return encode


def miniature(config: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, held_out: frozenset[str]) -> Documents:
    """The miniature world's endless stream of that seed; it never asks a question in `held_out`."""
    world, encode, mixture = make_world(), miniature_encoder(tokenizer), config.mixture
    assert mixture is not None  # DataConfig holds it
    return lambda index: encode(make_document(world, mixture, seed, index, held_out))


def in_order(corpus: Corpus, seed: int) -> Documents:
    """The documents of a corpus, in a new order every epoch."""
    place = shuffled(len(corpus), seed)
    return lambda index: corpus[place(index)]


def mean_tokens(documents: Documents, count: int) -> float:
    """Mean length of the first documents."""
    return fmean(len(documents(index).ids) for index in range(count))


def tokens_by_source(means: Mapping[str, float], shares: Mapping[str, float], tokens: int) -> dict[str, int]:
    """Tokens that each source must give for `tokens` in all. `shares`: of the documents; `means`: tokens per document."""
    whole = sum(share * means[name] for name, share in shares.items())
    return {name: math.ceil(tokens * share * means[name] / whole) for name, share in shares.items()}


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
    reporter: Reporter | None = None,
) -> Documents:
    """A function from a document's number (0, 1, ... without end) to its tokens.

    `shares` names one of `data`, or several with their shares of the documents, each above 0. Documents of files and
    datasets have at most `length` tokens. What `cache` lacks of `tokens_needed` is tokenised into it. Raises UsageError and
    MissingError as `distill.data.rows` and `distill.data.encode` do.
    """
    reporter = reporter or Reporter()
    shares = {shares: 1.0} if isinstance(shares, str) else shares
    caches = {
        name: TokenCache(name, data[name], tokenizer, length, cache)
        for name in shares
        if data[name].source != MINIATURE
    }
    worlds = {name: miniature(data[name], seed, tokenizer, held_out) for name in shares if name not in caches}
    needed = {name: tokens_needed for name in shares}
    if len(shares) > 1 and caches:
        means = {name: mean_tokens(world, PROBE_DOCUMENTS) for name, world in worlds.items()}
        for name, source in caches.items():
            source.grow(0, PROBE_DOCUMENTS, reporter)
            first = source.corpus()
            means[name] = mean_tokens(first.__getitem__, min(PROBE_DOCUMENTS, len(first)))
        needed = tokens_by_source(means, shares, tokens_needed)
    opened = {name: in_order(tokenised(source, needed[name], reporter), seed) for name, source in caches.items()}
    sources = [{**worlds, **opened}[name] for name in shares]
    place = interleaved(list(shares.values()))

    def document(index: int) -> Tokens:
        source, number = place(index)
        return sources[source](number)

    return document


def tokenised(source: TokenCache, tokens: int, reporter: Reporter) -> Corpus:
    """The first `tokens` tokens of a source; reports what was left out, and how often it is read when it is too small."""
    source.grow(tokens, 0, reporter)
    corpus = source.corpus().upto(tokens)
    reporter.note(f"data '{source.name}': {source.summary()}")
    if corpus.tokens < tokens:
        reporter.note(
            f"data '{source.name}' has less than {tokens:,} tokens: it is read {tokens / corpus.tokens:.1f} times"
        )
    return corpus
