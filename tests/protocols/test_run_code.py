"""HumanEval through the whole run: nothing runs without `--run-code`; with it our sandbox judges, never evalscope itself."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from perplexity_lies.errors import MissingError, UsageError
from perplexity_lies.record.records import Status
from perplexity_lies.run import evaluate
from perplexity_lies.sandbox import find_sandbox

SUITE = """
name: coding
tasks:
  - name: humaneval
    generation:
      evalscope: {benchmark}
      dataset: openai/openai_humaneval
      item: "{{{{ metadata.task_id }}}}"
      metric: acc
      max_new_tokens: 4
"""


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "hub/openai/openai_humaneval"
    (folder / "openai_humaneval").mkdir(parents=True)
    config = (
        "configs:\n- config_name: openai_humaneval\n  data_files:\n  - split: test\n    path: openai_humaneval/test-*\n"
    )
    (folder / "README.md").write_text(f"---\n{config}---\n")
    marker = tmp_path / "ran"
    tests = [
        "def check(candidate):\n    pass\n",
        f"def check(candidate):\n    open({str(marker)!r}, 'w')\n",
    ]
    rows = [
        {
            "task_id": f"own/{i}", "prompt": 'def f(x):\n    """Twice."""\n', "canonical_solution": "    return 2 * x\n",
            "test": test, "entry_point": "f",
        }
        for i, test in enumerate(tests)
    ]  # fmt: skip
    file = folder / "openai_humaneval/test-00000-of-00001-plies-own.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return tmp_path / "hub"


def suite(tmp_path: Path, benchmark: str = "humaneval") -> Path:
    path = tmp_path / "coding.yaml"
    path.write_text(SUITE.format(benchmark=benchmark))
    return path


def test_code_runs_only_with_the_flag(tmp_path: Path, mirror: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = {"suite": suite(tmp_path), "data": mirror, "out": tmp_path / "out", "device": "cpu"}
    run = evaluate("builtin:student", **told)
    records = list(run.records())
    assert [record.status for record in records] == [Status.ERRORED] * 2
    assert all("--run-code" in record.error and record.text for record in records)
    assert "humaneval: needs --run-code" in capfd.readouterr().err
    assert run.manifest.run_code == {}
    try:
        box = find_sandbox()
    except MissingError as error:
        pytest.skip(str(error))
    again = evaluate("builtin:student", **told, run_code=True)
    assert again.path == run.path, "the replies are kept: only the judging is new"
    assert again.manifest.run_code["sandbox"] == box.name
    assert [record.text for record in again.records()] == [record.text for record in records]
    assert [record.status for record in again.records()] == [Status.SCORED] * 2
    assert [record.score for record in again.records()][1] == 0.0
    assert not (tmp_path / "ran").exists(), "even the data set's own test cannot write here"


def test_a_benchmark_that_would_run_code_itself_is_refused(tmp_path: Path, mirror: Path) -> None:
    with pytest.raises(UsageError, match="runs the checkpoint's code"):
        evaluate("builtin:student", suite=suite(tmp_path, "mbpp"), data=mirror, out=tmp_path / "out", device="cpu")
