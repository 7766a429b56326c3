"""From Python: the front door's names, and a comparison that is computed once."""

from __future__ import annotations

import importlib
import importlib.util
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import perplexity_lies as plies
from perplexity_lies import evaluate as evaluate_function
from perplexity_lies.errors import MissingError, UsageError


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    asked = [
        {
            "id": f"i{i}", "subject": f"s{i % 2}", "question": f"{i} <b>+</b> 1", "choices": ["a", "b"], "gold": i % 2,
            "target": "a",
        }
        for i in range(6)
    ]  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in asked))
    task = {"name": "sums", "items": "items.jsonl", "extract": "(.)", "max_new_tokens": 4, "chat_template": False}
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [task]}))
    return folder / "own.yaml"


@pytest.fixture(scope="module")
def pair(tiny_checkpoint: Callable[..., Path]) -> tuple[str, str]:
    return str(tiny_checkpoint("llama")), str(tiny_checkpoint("llama", seed=1))


@pytest.fixture(scope="module")
def compared(suite: Path, pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("out")
    return plies.compare(*pair, suite=suite, out=out, device="cpu", quiet=True), out


def test_comparison_has_data_frames_and_a_notebook_rendering(compared: Any, pair: tuple[str, str]) -> None:
    found, _ = compared
    assert isinstance(found, plies.Comparison) and found.suite_name == "own" and not found.partial
    gaps = found.gaps
    assert list(zip(gaps["task"], gaps["rung"], strict=True)) == [
        (task, rung) for task in ("sums", "overall") for rung in ("loglikelihood", "generation")
    ]
    assert set(gaps["n"]) == {6} and gaps["teacher"].between(0, 100).all()
    assert ((gaps["student"] - gaps["teacher"]) - gaps["gap_pp"]).abs().max() < 1e-6
    items = found.items
    assert list(items["item"]) == [f"i{i}" for i in range(6)] and set(items["subject"]) == {"s0", "s1"}
    assert items["loglikelihood_teacher_score"].isin([0.0, 1.0]).all()
    replies = found.replies
    assert len(replies) == 24 and set(replies["extractor"].str.split("@").str[0]) == {"lm-eval", "pattern"}
    page = found._repr_html_()
    assert "<table>" in page and Path(pair[0]).name in page and "</table>" in page


def test_second_call_reads_and_loads_no_engine(
    compared: Any, suite: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("an engine was opened")

    module = importlib.import_module("perplexity_lies.run")
    monkeypatch.setattr(module, "open_engine", never)
    found, out = compared
    again = plies.compare(*pair, suite=suite, out=out, device="cpu", quiet=True)
    assert again == found and again.to_json() == found.to_json()
    with pytest.raises(AssertionError, match="an engine was opened"):
        plies.compare(*pair, suite=suite, out=out, device="cpu", quiet=True, limit=2)


def test_comparison_is_the_same_from_disk(compared: Any, tmp_path: Path) -> None:
    found, out = compared
    loaded = plies.load_comparison(found.write(tmp_path / "deep" / "c.json"))
    assert loaded.to_json() == found.to_json() and loaded.headline() == found.headline()
    teacher, student = _runs(found, out)
    assert plies.compare_runs(teacher, student) == found


def _runs(found: Any, out: Path) -> tuple[Path, Path]:
    teacher, student = (out / "runs" / Path(side.run).name for side in found.sides)
    return teacher, student


def test_checkpoint_against_itself_has_no_gap(suite: Path, pair: tuple[str, str], tmp_path: Path) -> None:
    found = plies.compare(pair[0], pair[0], suite=suite, out=tmp_path, device="cpu", quiet=True)
    assert set(found.gaps["gap_pp"]) == {0.0} and found.overall is not None
    assert found.overall.contrast("hidden gap").value == 0.0
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_the_front_door_is_a_plain_module() -> None:
    """No module of the package has the name of one of its functions, so that none can take its place."""
    assert type(plies) is types.ModuleType
    for name in plies.__all__:
        assert importlib.util.find_spec(f"perplexity_lies.{name}") is None
    assert evaluate_function is plies.evaluate and plies.compare.__module__ == "perplexity_lies.api"


def test_options_that_are_not_there_are_refused(suite: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(TypeError, match="divice"):
        plies.evaluate(pair[0], suite=suite, divice="cpu")
    with pytest.raises(UsageError, match="did you mean 'generation'"):
        plies.evaluate(pair[0], suite=suite, rungs="generaton")


def test_one_rung_alone_then_the_other(suite: Path, pair: tuple[str, str], tmp_path: Path) -> None:
    options = {"suite": suite, "out": tmp_path, "device": "cpu", "quiet": True}
    alone = plies.compare(*pair, rungs="generation", **options)
    assert list(alone.tasks[0].rungs) == ["generation"] and alone.overall is not None
    assert "There is no hidden gap to report" in alone.headline()
    assert {"rung", "one-sided"} <= {caution.kind for caution in alone.cautions}
    both = plies.compare(*pair, **options)
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert both.overall is not None and both.overall.gap("generation") == alone.overall.gap("generation")
    assert both.overall.contrast("hidden gap") is not None and "rung" not in {c.kind for c in both.cautions}


def test_every_name_of_the_front_door_is_there() -> None:
    for name in plies.__all__:
        assert getattr(plies, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compar'"):
        plies.compar  # noqa: B018


def test_errors_reach_the_caller(suite: Path, pair: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--limit 0"):
        plies.evaluate(pair[0], suite=suite, out=tmp_path, limit=0)
    with pytest.raises(MissingError, match="does not exist"):
        plies.evaluate("./none", suite=suite, out=tmp_path)
    with pytest.raises(plies.PliesError, match="no suite 'none'"):
        plies.compare(*pair, suite="none", out=tmp_path)
    assert list(tmp_path.iterdir()) == []
