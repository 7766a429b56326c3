"""What each extractor finds in a reply, by which rule, where, and what it pays for it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perplexity_lies.errors import UsageError
from perplexity_lies.extract import EXTRACTORS, open_extractor
from perplexity_lies.extract.base import Extractor, loops, status_of
from perplexity_lies.record.records import ItemRecord, Reading, Status

LETTERED = {"gold": "B", "choices": ("red", "blue", "A pear"), "gold_index": 1}
"""As evalscope's multiple-choice benchmarks have it: the reference is a letter."""
WORDED = {"gold": "blue", "choices": ("red", "blue", "A pear"), "gold_index": 1}


def record(text: str, *, finish: str = "stop", status: Status = Status.SCORED, **fields: Any) -> ItemRecord:
    read = Reading(extractor="library@1", status=status, score=0.0, metric="accuracy")
    whole = {"task": "t", "item": "i", "prompt": "q", "prompt_sha256": "", "gold": "7", **fields}
    return ItemRecord(rung="generation", readings=(read,), text=text, finish_reason=finish, **whole)


def read(extractor: str, text: str, **fields: Any) -> Reading:
    found = open_extractor(extractor).read(record(text, **fields))
    assert found.span is None or text[slice(*found.span)] == found.answer
    assert bool(found.rule) == bool(found.answer) == (found.span is not None)
    return found


@pytest.mark.parametrize("name", list(EXTRACTORS))
def test_the_table_names_each_by_its_own_name(name: str) -> None:
    extractor = open_extractor(name, {"extract": "(a)"})
    assert isinstance(extractor, Extractor) and extractor.name == name and extractor.label == f"{name}@1"


# --- pattern --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"answer : (\d+)", "answer : 3 ; answer : 7", "7"),
        (r"answer : (\d+)", "answer : 7 ; answer :", "7"),
        (r"^\s*(.*?)\s*$", "  7 apples \n", "7 apples"),
        (r"(\s\w+\s)", "a 7 b", "7"),
        (r"a|(b)", "b a", ""),
        (r"(\d*)", "7 ", ""),
        (r"(\d+)", "none", ""),
    ],
)
def test_pattern_takes_the_last_match(pattern: str, text: str, answer: str) -> None:
    found = read(f"pattern={pattern}", text)
    assert (found.answer, found.score) == (answer, float(answer == "7"))
    assert found.extractor == f"pattern@1={pattern}" and found.rule == ("last match" if answer else "")


@settings(deadline=None)
@given(
    st.text("ab 7\n", max_size=20),
    st.sampled_from([r"(a+)", r"(\s*\S+\s*)", r"^\s*(.*?)\s*$", r"\b([ab])\s*$", r"a|(7)", r"(\d*)", r"(.*)"]),
)
def test_pattern_is_the_last_of_findall(text: str, pattern: str) -> None:
    """The definition that runs were judged by before there were spans."""
    matches = re.findall(pattern, text)
    expected = matches[-1].strip() if matches else ""
    found = read(f"pattern={pattern}", text)
    assert found.answer == expected and found.score == float(expected == "7")


def test_pattern_without_argument_is_the_suites_own() -> None:
    own = open_extractor("pattern", {"extract": r"(\d+)"})
    assert own.label == "pattern@1" and own.read(record("7")).score == 1.0
    assert open_extractor(r"pattern=(\d+)", {"extract": r"(\d+)"}).label == "pattern@1"
    assert open_extractor(r"pattern=(\w+)", {"extract": r"(\d+)"}).label == r"pattern@1=(\w+)"
    for wanted in ("pattern", "pattern=(a", "pattern=a", "pattern=(a)(b)"):
        with pytest.raises(UsageError) as error:
            open_extractor(wanted)
        assert error.value.found and r"(\d+)" in error.value.mend[0]


def test_case_counts() -> None:
    assert read("pattern=(.*)", "key q N", gold="key q n").score == 0.0
    assert read("strict", "Blue", **WORDED).score == 0.0


# --- strict, last_letter, number ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "answer", "score"),
    [
        (" B\n", LETTERED, "B", 1.0),
        ("C", LETTERED, "C", 0.0),
        ("blue", LETTERED, "blue", 1.0),
        ("ANSWER: B", LETTERED, "", 0.0),
        ("blue ", WORDED, "blue", 1.0),
        ("red", WORDED, "red", 0.0),
        ("B", WORDED, "", 0.0),  # the question shows no letters
        ("it is blue", WORDED, "", 0.0),
        ("7", {}, "7", 1.0),
        ("8", {}, "8", 0.0),
        ("  ", {}, "", 0.0),
    ],
)
def test_strict(text: str, fields: dict[str, Any], answer: str, score: float) -> None:
    found = read("strict", text, **fields)
    assert (found.answer, found.score) == (answer, score)


@pytest.mark.parametrize(
    ("text", "fields", "answer", "score"),
    [
        ("A, no: B.", LETTERED, "B", 1.0),
        ("Because I say so", LETTERED, "B", 1.0),  # chance credit: that is what it is for
        ("D or E", LETTERED, "", 0.0),  # there are three choices
        ("A", WORDED, "A", 0.0),
        ("Because", WORDED, "B", 1.0),
        ("X", {"gold": "X"}, "X", 1.0),
        ("none here", {}, "", 0.0),
    ],
)
def test_last_letter(text: str, fields: dict[str, Any], answer: str, score: float) -> None:
    found = read("last_letter", text, **fields)
    assert (found.answer, found.score) == (answer, score)
    assert not answer or "chance" in found.rule


@pytest.mark.parametrize(
    ("text", "gold", "answer", "score"),
    [
        ("it costs $1,234.0.", "1234", "1,234.0", 1.0),
        ("#### 7", "so 3 + 4 = 7\n#### 7", "7", 1.0),
        ("07", "7", "07", 1.0),
        ("3 or 4", "3", "4", 0.0),
        ("-5", "-5", "-5", 1.0),
        ("minus −5", "-5", "−5", 1.0),
        ("9-5", "5", "5", 1.0),
        ("(9)-5", "-5", "5", 0.0),
        ("1,2,3", "3", "3", 1.0),
        ("12,345,6", "6", "6", 1.0),
        ("3.", "3", "3", 1.0),
        ("0.50", ".5", "0.50", 1.0),
        ("of 3.5 and -.5", "-0.5", "-.5", 1.0),
        ("end.5 apples", "5", "5", 1.0),
        ("seven", "7", "", 0.0),
        ("7", "seven", "7", 0.0),
        ("٣", "3", "", 0.0),
    ],
)
def test_number(text: str, gold: str, answer: str, score: float) -> None:
    found = read("number", text, gold=gold)
    assert (found.answer, found.score) == (answer, score)


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(EXTRACTORS))
@pytest.mark.parametrize("status", [Status.ERRORED, Status.REFUSED])
def test_a_reply_that_could_not_be_had_stays_so(name: str, status: Status) -> None:
    found = open_extractor(name, {"extract": "(.*)"}).read(record("7 A", status=status, **LETTERED))
    assert (found.status, found.score, found.answer) == (status, 0.0, "")


@pytest.mark.parametrize(("wanted", "near"), [("strct", "strict"), ("numbers", "number"), ("xyz", ""), ("", "")])
def test_unknown_extractor_names_the_nearest(wanted: str, near: str) -> None:
    with pytest.raises(UsageError) as error:
        open_extractor(wanted)
    assert (f"did you mean {near!r}?" in error.value.asked) == bool(near) and "strict" in error.value.found[0]


def test_an_argument_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UsageError, match="takes no argument"):
        open_extractor("strict=x")


# --- why there is a score, or none ------------------------------------------------------------------------------------

LOOP = "and then " * 60


@pytest.mark.parametrize(
    ("text", "finish", "answer", "status"),
    [
        ("answer : 3", "stop", "3", Status.SCORED),
        ("answer : 3 and", "length", "3", Status.SCORED),
        ("no idea", "stop", "", Status.UNPARSED),
        ("no idea", "stop_string", "", Status.UNPARSED),
        ("let me think", "length", "", Status.TRUNCATED),
        (LOOP, "length", "", Status.DEGENERATE),
        (LOOP, "stop", "", Status.UNPARSED),
        (LOOP, "length", "3", Status.SCORED),
        ("", "stop", "", Status.DEGENERATE),
        (" \n\t", "length", "", Status.DEGENERATE),
    ],
)
def test_status(text: str, finish: str, answer: str, status: Status) -> None:
    assert status_of(text, finish, answer) is status


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", False),
        ("a b c", False),
        ("a " * 64, True),
        ("a " * 62, False),  # the second half must hold two of the longest periods, 32 words
        ("one two three " * 40, True),
        (" ".join(map(str, range(200))), False),
        ("a quiet start that is not part of it " + "round and " * 60, True),
        (" ".join(map(str, range(16))) + " " + " ".join(map(str, range(16))) * 1, False),
        ((" ".join(map(str, range(16))) + " ") * 6, True),
        ((" ".join(map(str, range(17))) + " ") * 6, False),  # a period of 17 words is no loop
        ("round and " * 60 + "at last it ends", False),
    ],
)
def test_loops(text: str, found: bool) -> None:
    assert loops(text) is found
