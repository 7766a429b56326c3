"""A toy world of facts, sums, look-ups and instructions in about 250 words, made from a seed.

It gives drafts of questions, of which `stream` makes training text, and evaluation items: a question, four complete replies
of which three are near misses, and the short target. Five kinds: facts that must be in the weights, letter choices among
facts, written-out arithmetic, recall from the prompt, and operations on letters. Text is words joined by single spaces.

Standard library only.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

WORLD_SEED = 2603
"""Decides which facts hold and which items there are. A recipe varies the seed of its stream, never this one."""

MAX_NUMBER = 29
"""Largest number of the world; every partial sum lies in 0..MAX_NUMBER."""

LETTERS = tuple(string.ascii_lowercase)
CAPITALS = tuple(string.ascii_uppercase)
NAMES = tuple(
    "ada ben cleo dan eva finn gus hana ian jade kai lena max nina otto pia quin rosa sam tess ugo vera walt xena yves "
    "zoe amos beth carl dora ed faye glen hugo ines joel kim leo mara ned olga paul rhea stan tara ursa vito wanda "
    "yuri zora alma boris clara dirk elsa fred greta hank iris jonas karin liam".split()
)
OBJECTS = tuple(
    "box cup key jar bag pot pan map pen hat coin ring book lamp rope bell drum flag kite sail tent vase wheel clock "
    "glove brush spoon plate chair table shelf broom".split()
)
ATTRIBUTES = {
    "color": tuple("red blue green pink gray brown white black amber teal violet ivory".split()),
    "metal": tuple("iron gold zinc lead tin copper nickel silver steel brass bronze chrome".split()),
    "city": tuple("oslo rome paris cairo lima delhi tokyo quito berlin athens dublin madrid".split()),
    "animal": tuple("fox owl bear wolf crow deer seal hare toad lynx swan mole".split()),
    "food": tuple("rice bread soup cake plum pear fig corn bean kale leek date".split()),
    "job": tuple("baker pilot nurse judge tailor miner farmer sailor potter singer dancer mason".split()),
}
FUNCTION_WORDS = tuple(": ; , . ? + - = of give answer reverse uppercase repeat double times has".split())

MAX_FACTS, MAX_PAIRS, MAX_ASKED, MAX_STEPS, MAX_LETTERS, MAX_TIMES = 5, 12, 4, 8, 10, 7
"""Largest sizes of the five kinds, in training and evaluation."""


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation item: `choices` are complete replies, `choices[gold]` the right one, `target` its short answer."""

    id: str
    """Kind, size and number, such as `recall-12-0003`."""
    subject: str
    """The entity asked about, whose items stand or fall together; empty where items share nothing."""
    question: str
    choices: tuple[str, ...]
    gold: int
    target: str


@dataclass(frozen=True, slots=True)
class World:
    """The facts: `facts[name][attribute]` is a value."""

    facts: dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Draft:
    """A question with its reply, short target and near misses, before choices are shuffled."""

    kind: str
    subject: str
    question: str
    reply: str
    target: str
    misses: tuple[str, ...]


def make_world(seed: int = WORLD_SEED) -> World:
    """The facts of a world."""
    rng = random.Random(f"{seed}:facts")
    return World({name: {a: rng.choice(values) for a, values in ATTRIBUTES.items()} for name in NAMES})


def vocabulary() -> tuple[str, ...]:
    """Every word of the world, in a fixed order, without special tokens."""
    values = [value for group in ATTRIBUTES.values() for value in group]
    numbers = [str(n) for n in range(MAX_NUMBER + 1)]
    words = [*FUNCTION_WORDS, *numbers, *LETTERS, *CAPITALS, *ATTRIBUTES, *values, *NAMES, *OBJECTS]
    return tuple(dict.fromkeys(words))


def _replaced(words: list[str], at: int, word: str) -> list[str]:
    return [*words[:at], word, *words[at + 1 :]]


def _swapped(words: list[str], at: int) -> list[str]:
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _near_misses(rng: random.Random, reply: str, makers: list[Callable[[], str | None]]) -> tuple[str, ...]:
    """Three different wrong replies, the makers taken in turn until there are three; fewer when they run dry.

    No wrong reply begins another choice or is begun by one: ranking sees no end of reply, so there the shorter would
    always win, whatever the checkpoint knows.
    """
    found: list[str] = []
    for turn in range(60):
        miss = makers[turn % len(makers)]()
        taken = [f"{text} " for text in (reply, *found)]
        if miss is not None and not any(t.startswith(f"{miss} ") or f"{miss} ".startswith(t) for t in taken):
            found.append(miss)
        if len(found) == 3:
            break
    return tuple(found)


def draft_facts(rng: random.Random, world: World, count: int) -> Draft:
    """`count` attributes of one entity, in the order asked. Near misses: one value of another entity."""
    name = rng.choice(NAMES)
    asked = rng.sample(sorted(ATTRIBUTES), count)
    values = [world.facts[name][a] for a in asked]

    def render(shown: list[str]) -> str:
        return " , ".join(f"{a} {v}" for a, v in zip(asked, shown, strict=True))

    def miss() -> str:
        at = rng.randrange(count)
        return render(_replaced(values, at, world.facts[rng.choice(NAMES)][asked[at]]))

    reply = render(values)
    question = f"{' '.join(asked)} of {name} ?"
    return Draft(f"facts-{count}", name, question, reply, reply, _near_misses(rng, reply, [miss]))


def draft_choice(rng: random.Random, world: World) -> Draft:
    """A fact with four lettered options. Near misses: the right value with a wrong letter, a wrong one with its own."""
    name, attribute = rng.choice(NAMES), rng.choice(sorted(ATTRIBUTES))
    value = world.facts[name][attribute]
    options = [value, *rng.sample([v for v in ATTRIBUTES[attribute] if v != value], 3)]
    rng.shuffle(options)
    letters = "ABCD"
    letter = letters[options.index(value)]
    question = f"{attribute} of {name} ? " + " ".join(f"{v} {c}" for c, v in zip(letters, options, strict=True))
    reply = f"{value} {letter}"

    def wrong_letter() -> str:
        return f"{value} {rng.choice(letters)}"

    def wrong_value() -> str:
        at = rng.randrange(4)
        return f"{options[at]} {letters[at]}"

    misses = _near_misses(rng, reply, [wrong_letter, wrong_value])
    return Draft(f"choice-{attribute}", name, question, reply, letter, misses)


def _written_out(numbers: list[int], signs: list[str], slip: tuple[int, int] | None = None) -> str | None:
    """A sum worked step by step; `slip` = (step, error) adds an error there and carries it on. None out of range."""
    total, steps = numbers[0], []
    for step, (sign, number) in enumerate(zip(signs, numbers[1:], strict=True)):
        value = total + number if sign == "+" else total - number
        if slip is not None and slip[0] == step:
            value += slip[1]
        if not 0 <= value <= MAX_NUMBER:
            return None
        steps.append(f"{total} {sign} {number} = {value} ;")
        total = value
    return f"{' '.join(steps)} answer : {total}"


def draft_arith(rng: random.Random, world: World, steps: int) -> Draft:
    """A chain of sums. Near misses, carried on consistently: off by one or two, a sign flipped, an operand misread."""
    del world
    while True:
        numbers = [rng.randint(1, 9) for _ in range(steps + 1)]
        signs = [rng.choice("+-") for _ in range(steps)]
        reply = _written_out(numbers, signs)
        if reply is not None:
            break
    target = reply.rsplit(" ", 1)[1]

    def checked(text: str | None) -> str | None:
        return None if text is None or text.rsplit(" ", 1)[1] == target else text

    def slipped() -> str | None:
        return checked(_written_out(numbers, signs, (rng.randrange(steps), rng.choice((-2, -1, 1, 2)))))

    def flipped() -> str | None:
        at = rng.randrange(steps)
        return checked(_written_out(numbers, _replaced(signs, at, "-" if signs[at] == "+" else "+")))

    def misread() -> str | None:
        at = rng.randrange(1, steps + 1)
        return checked(_written_out([*numbers[:at], rng.choice(numbers), *numbers[at + 1 :]], signs))

    question = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True)) + " = ?"
    return Draft(f"arith-{steps}", "", question, reply, target, _near_misses(rng, reply, [slipped, misread, flipped]))


def draft_recall(rng: random.Random, world: World, pairs: int, asked: int) -> Draft:
    """Three letters under each key, some keys asked. Near misses: another key's value, a wrong letter, a wrong order."""
    del world
    keys = rng.sample(OBJECTS, pairs)
    letters = rng.sample(LETTERS + CAPITALS, 3 * pairs)
    values = {key: letters[3 * i : 3 * i + 3] for i, key in enumerate(keys)}
    wanted = rng.sample(keys, asked)

    def render(shown: dict[str, list[str]]) -> str:
        return " , ".join(f"{key} {' '.join(shown[key])}" for key in wanted)

    def changed(key: str, value: list[str]) -> str:
        return render({**values, key: value})

    def other_value() -> str:
        return changed(rng.choice(wanted), values[rng.choice(keys)])

    def one_letter() -> str:
        key, at = rng.choice(wanted), rng.randrange(3)
        return changed(key, _replaced(values[key], at, values[rng.choice(keys)][at]))

    def order() -> str:
        key = rng.choice(wanted)
        return changed(key, _swapped(values[key], rng.randrange(2)))

    reply = render(values)
    listed = " , ".join(f"{key} {' '.join(values[key])}" for key in keys)
    question = f"{listed} ; give {' '.join(wanted)}"
    misses = _near_misses(rng, reply, [other_value, one_letter, order])
    return Draft(f"recall-{pairs}", "", question, reply, reply, misses)


def draft_instruct(rng: random.Random, world: World, kind: str, length: int, times: int) -> Draft:
    """Do something to letters. Near misses: two neighbours swapped, one letter wrong, one too few or too many."""
    del world
    source = rng.sample(LETTERS, length)
    if kind == "repeat":
        source = source[:2]
        question, words = f"repeat {' '.join(source)} {times} times", source * times
    else:
        question = f"{kind} {' '.join(source)}"
        words = {
            "reverse": source[::-1],
            "uppercase": [c.upper() for c in source],
            "double": [c for c in source for _ in range(2)],
        }[kind]

    def neighbours() -> str:
        return " ".join(_swapped(words, rng.randrange(len(words) - 1)))

    def one_wrong() -> str:
        return " ".join(_replaced(words, rng.randrange(len(words)), rng.choice(words)))

    def one_off() -> str:
        at = rng.randrange(len(words))
        return " ".join(
            [*words[:at], *words[at + 1 :]] if rng.random() < 0.5 else [*words[:at], words[at], *words[at:]]
        )

    reply = " ".join(words)
    return Draft(
        f"instruct-{kind}", "", question, reply, reply, _near_misses(rng, reply, [neighbours, one_wrong, one_off])
    )


INSTRUCTIONS = ("reverse", "uppercase", "repeat", "double")


def draft_hard(rng: random.Random, world: World, task: str, number: int) -> Draft:
    """An evaluation-size draft: the upper sizes only, subjects in turn by `number`."""
    if task == "facts":
        return draft_facts(rng, world, 3 + number % 3)
    if task == "choice":
        return draft_choice(rng, world)
    if task == "arith":
        return draft_arith(rng, world, 5 + number % 4)
    if task == "recall":
        return draft_recall(rng, world, (8, 10, 12)[number % 3], rng.randint(3, MAX_ASKED))
    kind = INSTRUCTIONS[number % 4]
    return draft_instruct(rng, world, kind, rng.randint(6, MAX_LETTERS), rng.randint(4, MAX_TIMES))


def make_items(world: World, sizes: dict[str, int], seed: int = WORLD_SEED) -> dict[str, list[Item]]:
    """The evaluation items of every task in `sizes`: unique questions, four different choices, balanced golds."""
    items: dict[str, list[Item]] = {}
    for task, size in sizes.items():
        rng = random.Random(f"{seed}:items:{task}")
        drafts: dict[str, Draft] = {}
        while len(drafts) < size:
            made = draft_hard(rng, world, task, len(drafts))
            if len(made.misses) == 3:
                drafts.setdefault(made.question, made)
        golds = [i % 4 for i in range(size)]
        rng.shuffle(golds)
        items[task] = []
        for number, (made, gold) in enumerate(zip(drafts.values(), golds, strict=True)):
            choices = list(made.misses)
            choices.insert(gold, made.reply)
            identity = f"{made.kind}-{number:04d}"
            items[task].append(Item(identity, made.subject, made.question, tuple(choices), gold, made.target))
    return items
