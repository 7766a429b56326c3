"""Reading suites imports no evaluation library; one that is missing is told when it is needed, with what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

READ_ALL = """
import sys
from perplexity_lies.catalogue.suite import catalogue, load_suite
for name in catalogue():
    load_suite(name)
print([name for name in ("torch", "transformers", "datasets", "lm_eval", "evalscope") if name in sys.modules])
"""

WITHOUT = """
import sys
library, rung = sys.argv[1:]
sys.modules[library] = None
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import rung_class
from perplexity_lies.errors import MissingError
from perplexity_lies.progress import Reporter
from types import SimpleNamespace
try:
    rung_class(rung).ask(None, load_suite("miniature"), SimpleNamespace(reporter=Reporter(quiet=True)))
except MissingError as error:
    print(error)
"""


def run(program: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reading_suites_imports_nothing_heavy() -> None:
    assert run(READ_ALL) == "[]\n"


@pytest.mark.parametrize(("library", "rung"), [("lm_eval", "loglikelihood"), ("evalscope", "generation")])
def test_a_missing_library_is_told_when_it_is_needed(library: str, rung: str) -> None:
    said = run(WITHOUT, library, rung)
    assert f"the rung {rung!r} cannot be asked" in said and f"the library {library!r} is not installed" in said
    assert "pip install 'perplexity-lies[eval]'" in said
