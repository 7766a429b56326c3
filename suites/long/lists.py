"""RULER's tasks that read the whole text: tracing variables (`vt`), common words (`cwe`), frequent coded words (`fwe`).

    VAR ABXQT = 48213   ...   VAR RUMPL = VAR ABXQT   ->   which variables are 48213?

The prompts and numbers are RULER's (Hsieh et al. 2024, section 3 and appendix B); the code is ours.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from suites.long.length import CODED_LETTERS, tokens
from suites.long.needles import NOISE, near
from suites.long.words import words

CHAIN = 5
"""Variables of the chain: a value and four hops."""
TRACE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find all"
    " variables that are assigned the value {value} in the text above. Answer: According to the chain(s) of variable"
    " assignment in the text above, {count} variables are assigned the value {value}, they are:"
)
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear"
    " most often.\n{context}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that"
    " appear most often in the list are:"
)
CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded"
    " words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most"
    " frequently appeared words in the above coded text? Answer: According to the coded text above, the three most"
    " frequently appeared words are:"
)
COMMON_WORDS, COMMON_TIMES, OTHER_TIMES = 10, 30, 3
CODED_LENGTH, CODED_ALPHA = 6, 2.0
CODED_SHARE = 50
"""RULER: a vocabulary of one coded word for this many tokens."""


def _variables(rng: random.Random, count: int, letters: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    return list(found)


def _chain(rng: random.Random, noises: int, letters: int) -> tuple[str, list[str], list[str], int]:
    """A prompt over `noises` lines, its variables in order, five variables that it lacks, and the first one's depth."""
    drawn = _variables(rng, 2 * CHAIN, letters)
    names, others = drawn[:CHAIN], drawn[CHAIN:]
    value = str(rng.randrange(10_000, 100_000))
    lines = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in zip(names, names[1:], strict=False))]
    text = [NOISE] * noises
    places = sorted(rng.sample(range(noises), CHAIN))
    for shift, (place, line) in enumerate(zip(places, lines, strict=True)):
        text.insert(place + shift, line)
    prompt = TRACE.format(context="\n".join(text), value=value, count=CHAIN)
    return prompt, names, others, 100 * places[0] // noises


def vt_item(room: int, number: int, rng: random.Random) -> dict[str, object]:
    """One item, with a worked example of its own before it."""
    shown, answer, _, _ = _chain(rng, CHAIN, 3)
    example = f"{shown} {' '.join(answer)}\n\n"
    blank = tokens(example) + tokens(TRACE.format(context="", value="00000", count=CHAIN)) + CHAIN * 12
    prompt, names, others, place = _chain(rng, max(CHAIN, (room - blank) // (tokens(NOISE) + 1)), 5)
    misses = [" ".join(wrong) for wrong in near(rng, names, others)]
    return {"place": place, "question": example + prompt, "right": names, "reply": " ".join(names), "misses": misses}


def numbered(texts: Sequence[str]) -> str:
    """`1. a 2. b`."""
    return " ".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def _common(rng: random.Random, others: int, often: int, seldom: int) -> tuple[str, list[str], list[str]]:
    """A prompt, its ten common words in the order of their first appearance, and its other words."""
    drawn = words(rng, COMMON_WORDS + others)
    common, rest = drawn[:COMMON_WORDS], drawn[COMMON_WORDS:]
    whole = common * often + rest * seldom
    rng.shuffle(whole)
    first = {word: at for at, word in reversed(list(enumerate(whole)))}
    return COMMON.format(context=numbered(whole)), sorted(common, key=lambda word: first[word]), rest


def cwe_item(room: int, number: int, rng: random.Random) -> dict[str, object]:
    """One item, with a worked example of its own before it; as many other words as fit."""
    shown, answer, _ = _common(rng, 30, 10, OTHER_TIMES)
    example = f"{shown} {numbered(answer)}\n"
    state, fits, low, high = rng.getstate(), None, 1, max(2, room // (2 * OTHER_TIMES))
    while low <= high:
        others = (low + high) // 2
        rng.setstate(state)
        made = _common(rng, others, COMMON_TIMES, OTHER_TIMES)
        if tokens(example) + tokens(made[0]) <= room:
            fits, low = made, others + 1
        else:
            high = others - 1
    if fits is None:
        raise ValueError(f"cwe does not fit into {room} tokens; the least is 4,096")
    prompt, common, rest = fits
    misses = [numbered(wrong) for wrong in near(rng, common, rng.sample(rest, min(len(rest), 3)))]
    return {"place": None, "question": example + prompt, "right": common, "reply": numbered(common), "misses": misses}


def fwe_item(room: int, number: int, rng: random.Random) -> dict[str, object]:
    """One item: word k appears in proportion to k to the power -2; the most frequent of all is dots, which do not count."""
    found: dict[str, None] = {}
    while len(found) < max(8, room // CODED_SHARE):
        found["".join(rng.choices(string.ascii_lowercase, k=CODED_LENGTH))] = None
    vocabulary = ["...", *list(found)[1:]]
    left = room - tokens(CODED.format(context=""))
    shares = [rank**-CODED_ALPHA for rank in range(1, len(vocabulary) + 1)]
    a_word = sum(share * tokens(word, CODED_LETTERS) for word, share in zip(vocabulary, shares, strict=True))
    text = [word for word, share in zip(vocabulary, shares, strict=True) for _ in range(int(left * share / a_word))]
    rng.shuffle(text)
    right = vocabulary[1:4]
    misses = [" ".join(wrong) for wrong in near(rng, right, vocabulary[4:7])]
    prompt = CODED.format(context=" ".join(text))
    return {"place": None, "question": prompt, "right": right, "reply": " ".join(right), "misses": misses}
