r"""How long a text is: one rule for every checkpoint, so that the items do not depend on a tokenizer.

    tokens("The grass is green.")   ->  5
    tokens("8231904")               ->  7

RULER fills a prompt until the checkpoint's own tokenizer counts the length that is wanted, so teacher and student with
different tokenizers read different texts. Here a text is as long as a plain tokenizer would have it, which no checkpoint
owns: each run of letters is one token for every `WORD_LETTERS` letters that it begins, and a digit, another sign or a
line break is one each; a space belongs to what follows. That is how tokenizers with large vocabularies (32,000 and more) split
English, taken on the high side: numbers by the digit, as Llama-2, Gemma and Qwen do. So a prompt of "4096" fits 4,096
tokens of such a checkpoint. A tokenizer of a few hundred entries needs more; the run counts what it cut or refused.
"""

from __future__ import annotations

import re
from functools import cache

WORD_LETTERS = 8
"""Letters of a word a token; most words are shorter."""
CODED_LETTERS = 2
"""The same where the letters make no word: byte-pair vocabularies hold few strings of random letters longer than this."""
PIECE = re.compile(r"[^\W\d_]+|\d|\n|[^\w\s]|_")


@cache
def _of_word(word: str, letters: int) -> int:
    return -(-len(word) // letters) if word[0].isalpha() else 1


def tokens(text: str, letters: int = WORD_LETTERS) -> int:
    """Length of a text in tokens of the rule."""
    return sum(_of_word(piece, letters) for piece in PIECE.findall(text))
