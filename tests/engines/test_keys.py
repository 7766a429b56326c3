"""Keys of requests: journals on disk are found by them, so they change with the content and with nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplexity_lies.engines.base import GenerateRequest, Sampling, ScoreRequest

SCORE = ScoreRequest(context_ids=(1, 2), continuation_ids=(3,))
GENERATE = GenerateRequest(prompt="2 + 2 =", add_special_tokens=True, max_new_tokens=8)
OTHER: dict[str, Any] = {
    "context_ids": (1,),
    "continuation_ids": (3, 4),
    "prompt": "2 + 3 =",
    "add_special_tokens": False,
    "max_new_tokens": 9,
    "stop": ("\n",),
    "sampling": Sampling(temperature=0.5),
    "seed": 1,
    "max_prompt_tokens": 64,
    "messages": (("user", "2 + 2 ="),),
    "choices": ("4", "5"),
}
"""For each field of a request, a value that neither request has."""


def fields_of(request: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(request) if field.init]


def with_new_field(request: Any, **changed: Any) -> Any:
    """The request as a class with one option more would make it."""
    wider = dataclasses.make_dataclass(
        "Wider", [("penalty", float, 0.0)], bases=(type(request),), frozen=True, slots=True, kw_only=True
    )
    return wider(**{name: getattr(request, name) for name in fields_of(request)}, **changed)


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        (SCORE, b'["score",{"context_ids":[1,2],"continuation_ids":[3]}]'),
        (GENERATE, b'["generate",{"add_special_tokens":true,"max_new_tokens":8,"prompt":"2 + 2 ="}]'),
    ],
    ids=["score", "generate"],
)
def test_keys_are_those_of_journals_on_disk(request_: Any, content: bytes) -> None:
    """The definition, written out: another one orphans the answers of every run that is not complete."""
    assert request_.key == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("request_", [SCORE, GENERATE], ids=["score", "generate"])
def test_an_option_added_later_changes_no_key_unless_it_is_used(request_: Any) -> None:
    assert with_new_field(request_).key == request_.key
    assert with_new_field(request_, penalty=0.5).key != request_.key


@pytest.mark.parametrize(
    ("request_", "name"), [(request, name) for request in (SCORE, GENERATE) for name in fields_of(request)]
)
def test_every_field_is_in_the_key(request_: Any, name: str) -> None:
    changed = dataclasses.replace(request_, **{name: OTHER[name]})
    assert changed.key != request_.key
    assert dataclasses.replace(changed, **{name: getattr(request_, name)}).key == request_.key


@pytest.mark.parametrize("part", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_every_part_of_the_sampling_is_in_the_key(part: dict[str, float]) -> None:
    assert dataclasses.replace(GENERATE, sampling=Sampling(**part)).key != GENERATE.key  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 9), max_size=4))
def test_the_border_of_context_and_continuation_is_in_the_key(one: list[int], two: list[int]) -> None:
    found = {
        ScoreRequest(context_ids=tuple(whole[:cut]), continuation_ids=tuple(whole[cut:])).key
        for whole in [[*one, *two]]
        for cut in range(len(whole) + 1)
    }
    assert len(found) == len(one) + len(two) + 1


def test_the_key_is_no_part_of_what_a_request_is() -> None:
    """It is computed once and kept, and enters neither equality nor the printed form nor itself."""
    assert GENERATE.key is GENERATE.key
    assert "key" not in repr(GENERATE) and GENERATE.key not in repr(GENERATE)
    assert pickle.loads(pickle.dumps(GENERATE)) == GENERATE
    assert len({GENERATE, dataclasses.replace(GENERATE)}) == 1
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(GENERATE, key="mine")


def test_a_prompt_out_of_a_strangers_file_has_a_key() -> None:
    """Half a surrogate pair, which no text file may hold and JSON can."""
    assert dataclasses.replace(GENERATE, prompt="\ud83d").key != GENERATE.key
