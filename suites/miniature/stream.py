"""Training text of the miniature world: chat documents and plain text. Seed and number decide each document.

No document asks a question of the evaluation items. Plain documents hold the same world as running text: facts, sums,
copies, and tables to look things up in. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from suites.miniature.world import (
    ATTRIBUTES,
    CAPITALS,
    INSTRUCTIONS,
    LETTERS,
    MAX_ASKED,
    MAX_FACTS,
    MAX_LETTERS,
    MAX_NUMBER,
    MAX_PAIRS,
    MAX_STEPS,
    MAX_TIMES,
    NAMES,
    OBJECTS,
    Draft,
    World,
    draft_arith,
    draft_choice,
    draft_facts,
    draft_instruct,
    draft_recall,
)

VALUES = tuple(value for group in ATTRIBUTES.values() for value in group)


@dataclass(frozen=True, slots=True)
class Document:
    """One training text. Plain running text has an empty `question` and all its words in `answer`."""

    kind: str
    question: str
    answer: str


def _size(rng: random.Random, low: int, high: int, level: float) -> int:
    """A random size from `low` to at most `high`; `level` in [0, 1] is the share of the range that may be drawn."""
    return rng.randint(low, low + round((high - low) * level))


def draft(rng: random.Random, world: World, task: str, level: float) -> Draft:
    """A draft of a task for training; `level` in [0, 1] opens larger sizes as training goes on."""
    if task == "facts":
        return draft_facts(rng, world, _size(rng, 1, MAX_FACTS, level))
    if task == "choice":
        return draft_choice(rng, world)
    if task == "arith":
        return draft_arith(rng, world, _size(rng, 1, MAX_STEPS, level))
    if task == "recall":
        pairs = _size(rng, 1, MAX_PAIRS, level)
        return draft_recall(rng, world, pairs, rng.randint(1, min(MAX_ASKED, pairs)))
    kind = rng.choice(INSTRUCTIONS)
    return draft_instruct(rng, world, kind, _size(rng, 2, MAX_LETTERS, level), _size(rng, 2, MAX_TIMES, level))


def _plain_statement(rng: random.Random, world: World, level: float) -> str:
    del level
    name = rng.choice(NAMES)
    known = rng.sample(sorted(ATTRIBUTES), rng.randint(2, 4))
    return f"{name} has " + " , ".join(f"{a} {world.facts[name][a]}" for a in known) + " ."


def _plain_equations(rng: random.Random, world: World, level: float) -> str:
    del world, level
    lines = []
    for _ in range(rng.randint(2, 5)):
        total, number = rng.randint(0, MAX_NUMBER), rng.randint(1, 9)
        if total + number <= MAX_NUMBER and rng.random() < 0.5:
            lines.append(f"{total} + {number} = {total + number} ;")
        elif total >= number:
            lines.append(f"{total} - {number} = {total - number} ;")
    return " ".join(lines or ["0 + 1 = 1 ;"])


def _plain_table(rng: random.Random, world: World, level: float) -> str:
    """Keys with letters, listed, then listed again in another order: every second token can be looked up."""
    del world
    pairs = _size(rng, 2, 6, level)
    letters = rng.sample(LETTERS, 3 * pairs)
    rows = [f"{k} {' '.join(letters[3 * i : 3 * i + 3])}" for i, k in enumerate(rng.sample(OBJECTS, pairs))]
    again = rng.sample(rows, len(rows))
    return f"{' , '.join(rows)} . {' , '.join(again)} ."


def _plain_pairs(rng: random.Random, world: World, level: float) -> str:
    """Words of any kind, each with a letter, then the same pairs in another order: every letter can be looked up."""
    del world
    count = _size(rng, 2, 8, level)
    words = rng.sample([*OBJECTS, *NAMES, *VALUES], count)
    letters = rng.sample(rng.choice((LETTERS, CAPITALS, CAPITALS[:8])), count)
    pairs = [f"{word} {letter}" for word, letter in zip(words, letters, strict=True)]
    return f"{' '.join(pairs)} . {' '.join(rng.sample(pairs, count))} ."


def _plain_copy(rng: random.Random, world: World, level: float) -> str:
    """Words or letters, said twice or thrice."""
    del world
    pool = LETTERS if rng.random() < 0.5 else VALUES
    said = " ".join(rng.sample(pool, _size(rng, 3, 10, level)))
    return " . ".join([said] * rng.randint(2, 3)) + " ."


PLAIN = {
    "statement": _plain_statement,
    "equations": _plain_equations,
    "table": _plain_table,
    "pairs": _plain_pairs,
    "copy": _plain_copy,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of a document stream. The weights of a table need not sum to one."""

    chat: dict[str, float]
    """Weight of each task among chat documents."""
    plain: dict[str, float]
    """Weight of each kind among plain documents."""
    plain_share: float
    """Share of plain documents, in [0, 1]."""
    level_documents: int = 0
    """Documents until all sizes are open; 0 opens all at once."""


def make_document(world: World, mixture: Mixture, seed: int, index: int, held_out: frozenset[str]) -> Document:
    """Document number `index` of the stream `seed`. A question in `held_out` is replaced by another draw."""
    rng = random.Random(f"{seed}:{index}")
    level = min(1.0, index / mixture.level_documents) if mixture.level_documents else 1.0
    if rng.random() < mixture.plain_share:
        kind = rng.choices(list(mixture.plain), list(mixture.plain.values()))[0]
        return Document(kind, "", PLAIN[kind](rng, world, level))
    task = rng.choices(list(mixture.chat), list(mixture.chat.values()))[0]
    while True:
        made = draft(rng, world, task, level)
        if made.question not in held_out:
            return Document(task, made.question, made.reply)


def stream(world: World, mixture: Mixture, seed: int, held_out: frozenset[str], start: int = 0) -> Iterator[Document]:
    """Endless documents, from number `start` on."""
    index = start
    while True:
        yield make_document(world, mixture, seed, index, held_out)
        index += 1
