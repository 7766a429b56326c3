"""Item sources: files, generators, libraries. Equal items have equal digests; what is wrong is told with its place."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from perplexity_lies.catalogue import sources
from perplexity_lies.catalogue.items import read_items
from perplexity_lies.catalogue.suite import load_suite
from perplexity_lies.catalogue.tasks import Suite
from perplexity_lies.errors import MissingError, UsageError
from suites.miniature.catalogue import HERE, TASKS


def suite_of(folder: Path, items: Any, **task: Any) -> Suite:
    """A suite of one task over `items`."""
    folder.mkdir(exist_ok=True)
    settings = {"extract": "(.*)", "max_new_tokens": 4, **task}
    (folder / "own.yaml").write_text(
        yaml.safe_dump({"name": "own", "tasks": [{"name": "a", "items": items, **settings}]})
    )
    return load_suite(folder / "own.yaml")


@pytest.mark.parametrize("task", list(TASKS))
def test_the_generator_makes_the_items_of_the_bundled_file(task: str, tmp_path: Path) -> None:
    file = HERE / "items" / f"{task}.jsonl"
    made = suite_of(tmp_path / "made", {"generator": "miniature", "task": task})
    (only,) = made.tasks
    assert only.items is not None and only.items.load() == read_items(file)
    assert only.items.load(limit=3) == read_items(file)[:3] and made.datasets == ()
    assert made.digest == suite_of(tmp_path / "read", str(file)).digest, "the same questions"
    fewer = suite_of(tmp_path / "fewer", {"generator": "miniature", "task": task, "count": 5})
    assert fewer.digest != made.digest and len(fewer.tasks[0].items.load()) == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("items", "said", "mend"),
    [
        ({"generator": "minature", "task": "facts"}, "did you mean 'miniature'?", "generator: NAME"),
        ({"generator": "miniature"}, "missing a required argument: 'task'", "settings: task, count"),
        ({"generator": "miniature", "tsk": "facts"}, "missing a required argument", "settings: task, count"),
        ({"generator": "miniature", "task": "fact"}, "no task 'fact'", "settings: task, count"),
        ({"generator": 3}, "generator should be a string", ""),
    ],
)
def test_a_generator_that_cannot_be_used(items: Any, said: str, mend: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        suite_of(tmp_path, items)
    assert said in f"{error.value.asked}\n{error.value.found[0]}" and "own.yaml, task 'a'" in error.value.asked
    assert mend in error.value.mend[0]


def made_elsewhere(count: int = 2, same: bool = False) -> Any:
    """Another package's generator, which gives plain mappings."""
    for index in range(count):
        yield {"id": "x" if same else f"x{index}", "question": f"{index}?", "target": "7", "more": 1}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`made_elsewhere` as an entry point of an installed package."""
    found = EntryPoint(name="elsewhere", value=f"{__name__}:made_elsewhere", group=sources.GENERATORS_OF_OTHERS)
    monkeypatch.setattr(sources, "entry_points", lambda group: [found] if group == found.group else [])
    monkeypatch.setattr(sources, "from_table", lambda *_: made_elsewhere)


@pytest.mark.usefixtures("installed")
def test_an_installed_package_brings_a_generator(tmp_path: Path) -> None:
    (task,) = suite_of(tmp_path, {"generator": "elsewhere", "count": 3}, rungs=["generation"]).tasks
    assert task.items is not None
    assert [item.id for item in task.items.load(limit=2)] == ["x0", "x1"]
    with pytest.raises(UsageError, match="two items have one id"):
        suite_of(tmp_path, {"generator": "elsewhere", "same": True}, rungs=["generation"])


def test_items_of_a_library_are_named_by_its_settings(tmp_path: Path) -> None:
    """Without the dataset at hand: the run's identity holds the dataset's digest beside the suite's."""
    raw = {"lm_eval": "arc/arc_easy.yaml", "dataset": "allenai/ai2_arc"}
    suite = suite_of(tmp_path / "a", raw)
    assert suite.datasets == ("allenai/ai2_arc",)
    assert suite_of(tmp_path / "b", {**raw, "id": "{{ id }}"}).digest != suite.digest
    assert suite_of(tmp_path / "c", {"evalscope": "arc", "dataset": "allenai/ai2_arc"}).digest != suite.digest
    source = suite.tasks[0].items
    assert source is not None and "arc_easy" in source.title
    with pytest.raises(MissingError, match="no mirror was named"):
        source.load()
