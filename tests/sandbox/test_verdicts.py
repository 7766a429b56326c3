"""The sandbox's verdicts beside evalscope's own function's, on real HumanEval and on programs written here."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies import sandbox
from perplexity_lies.errors import MissingError
from perplexity_lies.sandbox import Judgement, Program, Sandbox, find_sandbox, run_program, run_programs

HUB = Path(__file__).parents[2].parent / "shared/data/hub"


@pytest.fixture(scope="module")
def box() -> Sandbox:
    try:
        return find_sandbox()
    except MissingError as error:
        pytest.skip(str(error))


def by_evalscope(problem: dict[str, Any], completion: str) -> bool:
    """evalscope's own `unsafe_execute` in a child of this process. Only for programs that are known to be harmless."""
    from evalscope.benchmarks.humaneval.utils import unsafe_execute

    read, write = os.pipe()
    if not (child := os.fork()):
        result: list[str] = []
        try:
            unsafe_execute(problem, completion, 4, result)
        finally:
            os.write(write, json.dumps(result).encode()[:4000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said.startswith(b'["passed"')


PROMPT = 'def helper(x):\n    return x + 1\n\ndef work(x, y=2):\n    """Does it."""\n'
PROGRAMS = {
    "plain": ("    return [x, y]\n", "assert candidate(1) == [1, 2] and candidate(1, y=3) == [1, 3]"),
    "wrong": ("    return [x]\n", "assert candidate(1) == [1, 2]"),
    "whole function again": ("def work(x, y=2):\n    return x * y\n", "assert candidate(3) == 6"),
    "main block is not run": ("    return x\nif __name__ == '__main__':\n    1 / 0\n", "assert candidate(3) == 3"),
    "fence left in": ("```python\ndef work(x):\n    return x\n", "assert candidate(3) == 3"),
    "helper of the prompt in the test": ("    return helper(x)\n", "assert candidate(3) == helper(3)"),
    "the test calls it by name": ("    return x\n", "assert work(3) == 3"),
    "tuple is no list": ("    return (x, y)\n", "assert candidate(1) == [1, 2]"),
    "set": ("    return {x, y}\n", "assert candidate(1) == {2, 1}"),
    "iterator": ("    return (i for i in range(x))\n", "assert list(candidate(3)) == [0, 1, 2]"),
    "iterator is no list": ("    return (i for i in range(x))\n", "assert candidate(3) == [0, 1, 2]"),
    "keys": ("    return {x: y}.keys()\n", "assert candidate(1) == {1}"),
    "floats to the last bit": ("    return x * 0.1\n", "assert candidate(3) == 0.30000000000000004"),
    "not a number": ("    return float('nan')\n", "assert candidate(1) != candidate(1)"),
    "huge integer": ("    return x ** 20000\n", "assert candidate(7) == 7 ** 20000"),
    "odd text": ("    return x + '\\ud800\\x00日'\n", "assert candidate('a') == 'a\\ud800\\x00日'"),
    "dict with odd keys": ("    return {(1, x): None, True: 2.5}\n", "assert candidate(1) == {(1, 1): None, True: 2.5}"),
    "raises what is expected": (
        "    raise ValueError('no')\n",
        "try:\n        candidate(1)\n    except ValueError:\n        return\n    assert False",
    ),
    "raises its own": ("    raise Own('no')\nclass Own(Exception): pass\n", "assert candidate(1) == 1"),
    "changes its argument": ("    x.append(9)\n    return x\n", "v = [1]\n    candidate(v)\n    assert v == [1, 9]"),
    "keeps a state": ("    seen.append(x)\n    return len(seen)\nseen = []\n", "assert [candidate(0), candidate(0)] == [1, 2]"),
    "imports": ("    import math, re, itertools, collections\n    return math.gcd(x, 6)\n", "assert candidate(4) == 2"),
    "no such name": ("    return 1\ndel work\n", "assert True"),
    "name changed": ("    return 1\nwork = lambda x: 5\n", "assert candidate(1) == 5"),
    "syntax": ("    return (\n", "assert True"),
    "exit while it loads": ("    return 1\nraise SystemExit\n", "assert candidate(1) == 1"),
    "empty": ("", "assert candidate(1) is None"),
    "true is true": ("    return x > 0\n", "assert candidate(1) is True"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_verdict_is_evalscopes(name: str, box: Sandbox) -> None:
    completion, asserted = PROGRAMS[name]
    test = f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    {asserted}\n"
    problem = {"task_id": "t", "prompt": PROMPT, "test": test, "entry_point": "work"}
    judged = run_program(box, Program(prompt=PROMPT, completion=completion, test=test, entry_point="work"))
    assert judged.passed is by_evalscope(problem, completion), judged


MUTATIONS: dict[str, Callable[[str, str], str]] = {
    "canonical": lambda prompt, code: code,
    "the whole function": lambda prompt, code: prompt + code,
    "plus for minus": lambda prompt, code: code.replace(" - ", " + ").replace(" < ", " <= "),
}


@pytest.mark.slow
def test_verdicts_on_all_of_humaneval_are_evalscopes(box: Sandbox) -> None:
    files = sorted((HUB / "openai/openai_humaneval").rglob("*.parquet"))
    if not files:
        pytest.skip("no ../shared/data/hub")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(files[0]).to_pylist()
    asked = [(row, mutate(row["prompt"], row["canonical_solution"])) for row in rows for mutate in MUTATIONS.values()]
    programs = [
        Program(prompt=row["prompt"], completion=code, test=row["test"], entry_point=row["entry_point"])
        for row, code in asked
    ]
    ours = run_programs(box, programs, lambda _: None)
    differing = [
        (row["task_id"], code, judged)
        for (row, code), judged in zip(asked, ours, strict=True)
        if not isinstance(judged, Judgement) or judged.passed is not by_evalscope(row, code)
    ]
    assert len(rows) == 164 and not differing
    assert sum(judged.passed for judged in ours[:: len(MUTATIONS)] if isinstance(judged, Judgement)) == 164


def test_a_bubblewrap_that_does_not_hold_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `bwrap` that starts its command in the open: the trial program gets out, and the next kind is taken."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != "-I" ]; do shift; done\nexit 1\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kind, reasons = sandbox._sandboxes.__wrapped__()
    assert kind != "bubblewrap" and any("bubblewrap" in reason for reason in reasons)


def test_no_sandbox_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_sandboxes", lambda: ("", ("namespaces: unshare: Operation not permitted",)))
    with pytest.raises(MissingError, match="no sandbox holds"):
        find_sandbox()
