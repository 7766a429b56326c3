"""RULER's needles in a haystack (Hsieh et al. 2024, section 3): facts with a key and a value, hidden in a long text.

    One of the special magic numbers for brave-lantern is: 4821907.

Eight tasks differ in the haystack (a repeated line, essays, other needles), in what key and value are, and in how many keys,
values a key and questions there are. The prompts are RULER's words; the code is ours. What is asked sits at a depth that
walks over the text from item to item, so that few items cover it already.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from suites.long.length import tokens
from suites.long.words import keys

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about the"
    " {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text are"
)
ONE = (
    "A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you about the"
    " {one} afterwards.\n{context}\nWhat is the special magic {one} for {query} mentioned in the provided text?"
    " The special magic {one} for {query} mentioned in the provided text is"
)
DEPTHS = 40
"""Places from the first to the last, as RULER has them."""
STRIDE = 17
"""Coprime to `DEPTHS`: successive items are far apart, and 40 items stand at 40 depths."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """What distinguishes one needle task."""

    haystack: str
    """`noise`, `essays` or `needles`."""
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    asked: int = 1


HUNTS = {
    "niah_single_1": Hunt("noise"),
    "niah_single_2": Hunt("essays"),
    "niah_single_3": Hunt("essays", value="uuids"),
    "niah_multikey_1": Hunt("essays", keys=4),
    "niah_multikey_2": Hunt("needles"),
    "niah_multikey_3": Hunt("needles", key="uuids", value="uuids"),
    "niah_multivalue": Hunt("essays", values=4),
    "niah_multiquery": Hunt("essays", keys=4, asked=4),
}


def listed(texts: Sequence[str]) -> str:
    """`a, b, and c`."""
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + f", and {texts[-1]}"


def _values(rng: random.Random, kind: str, count: int) -> list[str]:
    """Different numbers of seven digits, or UUIDs."""
    found: dict[str, None] = {}
    while len(found) < count:
        number = rng.randrange(10**6, 10**7) if kind == "numbers" else rng.getrandbits(128)
        found[str(number) if kind == "numbers" else str(uuid.UUID(int=number, version=4))] = None
    return list(found)


def _keys(rng: random.Random, kind: str, count: int) -> list[str]:
    return keys(rng, count) if kind == "words" else _values(rng, "uuids", count)


def _straw(rng: random.Random, hunt: Hunt, room: int, sentences: Sequence[str], names: Sequence[str]) -> list[str]:
    """The haystack's pieces: as many as fit into `room` tokens. None of its own needles has a key of `names`."""
    if hunt.haystack == "needles":
        line = NEEDLE.format(
            kind=hunt.value, key="amber-canyon" if hunt.key == "words" else uuid.UUID(int=0), value="{}"
        )
        most = max(1, room // tokens(line)) + len(names)
        made = zip(_keys(rng, hunt.key, most), _values(rng, hunt.value, most), strict=True)
        endless: Iterator[str] = (
            NEEDLE.format(kind=hunt.value, key=key, value=value) for key, value in made if key not in names
        )
    else:
        endless = _around(sentences if hunt.haystack == "essays" else (NOISE,))
    straw, taken = [], 0
    for piece in endless:
        taken += tokens(piece) + (hunt.haystack != "essays")  # a line break
        if taken > room:
            break
        straw.append(piece)
    return straw


def _around(pieces: Sequence[str]) -> Iterator[str]:
    while True:
        yield from pieces


def depths(rng: random.Random, number: int, count: int) -> list[int]:
    """`count` different depths in percent; the first is that of item `number`, the others are drawn."""
    own = number * STRIDE % DEPTHS
    others = rng.sample([place for place in range(DEPTHS) if place != own], count - 1)
    return [round(100 * place / (DEPTHS - 1)) for place in (own, *others)]


def hidden(straw: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """`straw` with each needle at its depth in percent."""
    text, order = list(straw), sorted(range(len(needles)), key=lambda i: places[i], reverse=True)
    for i in order:
        text.insert(len(straw) * places[i] // 100, needles[i])
    return text


def hunt_item(task: str, room: int, number: int, rng: random.Random, sentences: Sequence[str]) -> dict[str, object]:
    """One item. `room` is the length in tokens that prompt and reply may take together, less the reply's."""
    hunt = HUNTS[task]
    names = _keys(rng, hunt.key, hunt.keys)
    drawn = _values(rng, hunt.value, hunt.keys * hunt.values + 3)
    values = [drawn[i * hunt.values : (i + 1) * hunt.values] for i in range(hunt.keys)]
    spare = drawn[hunt.keys * hunt.values :]
    needles = [
        NEEDLE.format(kind=hunt.value, key=key, value=value)
        for key, own in zip(names, values, strict=True)
        for value in own
    ]
    places = depths(rng, number, len(needles))
    queries, right = names[: hunt.asked], [value for own in values[: hunt.asked] for value in own]
    form = ONE if len(right) == 1 else MANY
    words = {"kind": hunt.value, "one": hunt.value[:-1], "query": listed(queries)}
    frame = tokens(form.format(**words, context="")) + sum(map(tokens, needles)) + len(needles)
    straw = _straw(rng, hunt, room - frame, sentences, names)
    context = (" " if hunt.haystack == "essays" else "\n").join(hidden(straw, needles, places))
    if hunt.haystack == "needles":
        there = [piece.rsplit(": ", 1)[1][:-1] for piece in straw]
        others = [value for value in dict.fromkeys(rng.sample(there, min(8, len(there)))) if value not in right]
    elif hunt.asked < hunt.keys:
        others = [value for own in values[hunt.asked :] for value in own]
    else:
        others = spare
    return {
        "place": places[0],
        "question": form.format(**words, context=context),
        "right": right,
        "reply": listed(right),
        "misses": [listed(wrong) for wrong in near(rng, right, (*others, *spare))],
    }


def near(rng: random.Random, right: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    """Three wrong answers of the same form: one part of the right one replaced, each time by another of `others`."""
    return [
        [*right[:at], other, *right[at + 1 :]]
        for at, other in zip((rng.randrange(len(right)) for _ in range(3)), dict.fromkeys(others), strict=False)
    ]
