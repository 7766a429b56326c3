"""The miniature world: items made again byte for byte, hard but fair choices, nothing of them in training."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from suites.miniature.catalogue import HERE, TASKS, all_items, write_files
from suites.miniature.stream import PLAIN, Mixture, make_document, stream
from suites.miniature.world import ATTRIBUTES, Item, make_items, make_world, vocabulary

ITEMS = all_items()
ALL = [(task, item) for task, items in ITEMS.items() for item in items]
HELD_OUT = frozenset(item.question for _, item in ALL)
MIXTURE = Mixture(chat=dict.fromkeys(TASKS, 1.0), plain=dict.fromkeys(PLAIN, 1.0), plain_share=0.3)


def test_the_committed_files_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    made = {path.relative_to(tmp_path): path.read_bytes() for path in write_files(tmp_path)}
    committed = [*HERE.glob("items/*.jsonl"), HERE / "tasks.json"]
    assert made == {path.relative_to(HERE): path.read_bytes() for path in committed}


def test_files_hold_what_the_suite_reads() -> None:
    settings = json.loads((HERE / "tasks.json").read_text())
    assert 800 <= sum(task["items"] for task in settings.values()) <= 1000
    for task, setting in settings.items():
        rows = [json.loads(line) for line in (HERE / "items" / f"{task}.jsonl").read_text().splitlines()]
        assert len(rows) == setting["items"]
        for row in rows:
            assert set(row) == {"id", "subject", "question", "choices", "gold", "target"}
        assert re.compile(setting["extract"]).groups == 1 and setting["max_new_tokens"] <= 64


def test_questions_and_ids_are_unique() -> None:
    assert len(HELD_OUT) == len(ALL) == len({item.id for _, item in ALL})


@pytest.mark.parametrize("task", list(TASKS))
def test_the_right_answer_stands_at_every_place_equally_often(task: str) -> None:
    counts = Counter(item.gold for item in ITEMS[task])
    assert set(counts) == {0, 1, 2, 3} and max(counts.values()) - min(counts.values()) <= 1


def test_choices_differ_and_none_begins_another() -> None:
    for _, item in ALL:
        assert len(item.choices) == 4
        for one in item.choices:
            others = [other for other in item.choices if other is not one]
            assert not any(f"{other} ".startswith(f"{one} ") for other in others), item


def test_the_pattern_finds_the_target_in_the_right_choice_only() -> None:
    for task, item in ALL:
        found = [re.search(TASKS[task]["extract"], choice) for choice in item.choices]
        answers = [match.group(1) for match in found if match is not None]
        assert len(answers) == 4 and answers[item.gold] == item.target
        wrong = [answer for place, answer in enumerate(answers) if place != item.gold]
        assert item.target not in wrong or task == "choice"


def test_replies_fit_their_budget() -> None:
    for task, item in ALL:
        assert len(item.choices[item.gold].split()) < TASKS[task]["max_new_tokens"]


def check_facts(item: Item) -> None:
    *asked, _, name, _ = item.question.split()
    known = make_world().facts[name]
    assert item.choices[item.gold] == " , ".join(f"{a} {known[a]}" for a in asked)


def check_choice(item: Item) -> None:
    attribute, _, name, _, *options = item.question.split()
    letter_of = dict(zip(options[::2], options[1::2], strict=True))
    value = make_world().facts[name][attribute]
    assert set(letter_of) <= set(ATTRIBUTES[attribute]) and list(letter_of.values()) == list("ABCD")
    assert item.choices[item.gold] == f"{value} {letter_of[value]}" and item.target == letter_of[value]


def check_arith(item: Item) -> None:
    expression = item.question.removesuffix(" = ?")
    assert int(item.target) == eval(expression)
    steps = [step.split() for step in item.choices[item.gold].split(" ; ")[:-1]]
    total = int(expression.split()[0])
    for left, sign, right, _, value in steps:
        assert int(left) == total
        total = total + int(right) if sign == "+" else total - int(right)
        assert int(value) == total
    rebuilt = steps[0][0] + "".join(f" {sign} {right}" for _, sign, right, _, _ in steps)
    assert rebuilt == expression
    assert all(len(c.split()) == len(item.choices[item.gold].split()) for c in item.choices)


def check_recall(item: Item) -> None:
    listed, asked = item.question.split(" ; give ")
    rows = dict(row.split(" ", 1) for row in listed.split(" , "))
    assert item.choices[item.gold] == " , ".join(f"{key} {rows[key]}" for key in asked.split())


def check_instruct(item: Item) -> None:
    kind, *letters = item.question.split()
    if kind == "repeat":
        *letters, times, _ = letters
        expected = letters * int(times)
    else:
        expected = {
            "reverse": letters[::-1],
            "uppercase": [c.upper() for c in letters],
            "double": [c for c in letters for _ in "12"],
        }[kind]
    assert item.choices[item.gold] == " ".join(expected)


CHECKS = {
    "facts": check_facts,
    "choice": check_choice,
    "arith": check_arith,
    "recall": check_recall,
    "instruct": check_instruct,
}


@pytest.mark.parametrize("task", list(TASKS))
def test_the_right_answers_are_right(task: str) -> None:
    for item in ITEMS[task]:
        CHECKS[task](item)


def test_no_evaluation_question_is_in_the_training_stream() -> None:
    world = make_world()
    for index in range(20000):
        document = make_document(world, MIXTURE, 5, index, HELD_OUT)
        assert document.question not in HELD_OUT
    leaky = {make_document(world, MIXTURE, 5, index, frozenset()).question for index in range(20000)}
    assert leaky & HELD_OUT


def test_the_stream_is_a_function_of_seed_and_number() -> None:
    world = make_world()
    whole = stream(world, MIXTURE, 3, HELD_OUT)
    first = [next(whole) for _ in range(40)]
    later = stream(world, MIXTURE, 3, HELD_OUT, start=25)
    assert [next(later) for _ in range(15)] == first[25:]
    other = stream(world, MIXTURE, 4, HELD_OUT)
    assert [next(other) for _ in range(40)] != first


def test_documents_use_known_words_and_open_with_the_curriculum() -> None:
    world, words = make_world(), set(vocabulary())
    mixture = Mixture(chat=MIXTURE.chat, plain=MIXTURE.plain, plain_share=0.4, level_documents=4000)
    sizes = []
    for index in range(8000):
        document = make_document(world, mixture, 1, index, HELD_OUT)
        text = f"{document.question} {document.answer}".split()
        assert set(text) <= words
        sizes.append(len(text))
    assert max(sizes) <= 100 and sum(sizes[:500]) * 1.5 < sum(sizes[-500:])


def test_other_seeds_make_other_worlds() -> None:
    assert make_world(1) != make_world(2) and make_world(1) == make_world(1)
    assert make_items(make_world(1), {"facts": 5}, 1) != make_items(make_world(2), {"facts": 5}, 2)
