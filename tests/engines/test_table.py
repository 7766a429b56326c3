"""The table of engines: a new engine is one file and one row."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.engines import ENGINES, Listed, engine_of, open_engine
from perplexity_lies.engines.base import EngineOptions, GenerateRequest
from perplexity_lies.engines.torch import TorchEngine
from perplexity_lies.errors import MissingError, UsageError

OPTIONS = EngineOptions(device="cpu", slots=2)


def test_an_engine_is_one_file_and_one_row(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_engine.py").write_text(
        textwrap.dedent("""
            import dataclasses
            from perplexity_lies.engines.torch import TorchEngine

            class LoudEngine(TorchEngine):
                def generate(self, *given):
                    for batch in super().generate(*given):
                        yield [dataclasses.replace(result, text=result.text.upper()) for result in batch]
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "loud", Listed("loud_engine:LoudEngine", extra="torch"))
    checkpoint = resolve(str(tiny_llama))
    assert engine_of("loud", checkpoint) == "loud" and "loud_engine" not in sys.modules
    engine = open_engine("loud", checkpoint, OPTIONS)
    request = GenerateRequest(prompt="one two", add_special_tokens=True, max_new_tokens=20)
    ((loud,),), ((plain,),) = engine.generate([request]), TorchEngine(checkpoint, OPTIONS).generate([request])
    assert loud.text == plain.text.upper() != plain.text


def test_a_name_that_is_not_in_the_table_is_refused_with_the_nearest(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'torch'") as caught:
        engine_of("touch", resolve(str(tiny_llama)))
    assert all(name in str(caught.value) for name in ENGINES)


def test_a_missing_library_names_the_extra(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_engine.py").write_text("import a_library_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "needy", Listed("needy_engine:NeedyEngine", extra="needy"))
    with pytest.raises(MissingError, match="the engine 'needy' cannot start") as caught:
        open_engine("needy", resolve(str(tiny_llama)), OPTIONS)
    assert "perplexity-lies[needy]" in str(caught.value)
