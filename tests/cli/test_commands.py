"""What the commands leave on disk and print; the gate's exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .command import Plies, write_suite


def test_suites_are_listed_and_shown(plies: Plies, tmp_path: Path) -> None:
    said = plies("suites")
    assert said.code == 0 and "smoke" in said.out and "arc_easy, arc_challenge" in said.out
    (tmp_path / "hub" / "allenai" / "ai2_arc").mkdir(parents=True)
    said = plies("suites", "smoke", "--data", "hub")
    assert said.code == 0 and "max_new_tokens: 64" in said.out
    assert f"# allenai/ai2_arc: {tmp_path / 'hub' / 'allenai' / 'ai2_arc'}" in said.out
    assert "# Rowan/hellaswag: hf download --repo-type dataset Rowan/hellaswag" in said.out
    assert "# openai/gsm8k: hf download" in plies("suites", "smoke").out


def test_metrics_of_a_suite_are_listed(plies: Plies) -> None:
    said = plies("suites", "smoke", "--metrics")
    assert said.code == 0 and "arc_easy, log-likelihood: acc, acc_norm (the suite's)\n" in said.out
    assert "gsm8k, generation: accuracy (the suite's)\n" in said.out
    assert "facts, log-likelihood: acc (the suite's), acc_norm\n" in plies("suites", "miniature", "--metrics").out


def test_compare_leaves_runs_comparison_and_report(compared: Path) -> None:
    (comparison,) = compared.glob("*/comparison.json")
    content = json.loads(comparison.read_text())
    suites = [side["manifest"]["suite"] for side in content["sides"]]
    assert all(suite["name"] == "own" and suite["limit"] is None for suite in suites)
    assert [len(task["items"]) for task in content["items_of"]] == [4]
    assert comparison.with_name("report.html").read_text().lstrip().lower().startswith("<!doctype html")
    runs = sorted((compared / "runs").iterdir())
    assert len(runs) == 2 and all(json.loads((run / "manifest.json").read_text())["complete"] for run in runs)


def runs_of(compared: Path) -> tuple[Path, Path]:
    """Teacher's and student's run, where the comparison says that they lie."""
    (comparison,) = compared.glob("*/comparison.json")
    sides = json.loads(comparison.read_text())["sides"]
    assert not any(Path(side["run"]).is_absolute() for side in sides)
    teacher, student = ((comparison.parent / side["run"]).resolve() for side in sides)
    return teacher, student


def without_places(comparison: Path) -> Any:
    """A comparison but for where it says that the runs lie."""
    content = json.loads(comparison.read_text())
    for side in content["sides"]:
        del side["run"]
    return content


def test_report_from_two_runs_and_from_a_comparison_is_the_same(compared: Path, plies: Plies, tmp_path: Path) -> None:
    (first,) = compared.glob("*/comparison.json")
    assert plies("report", *runs_of(compared), "--out", "again").code == 0
    assert without_places(tmp_path / "again" / "comparison.json") == without_places(first)
    for given in ("again", "again/comparison.json"):
        said = plies("report", given, "--out", "third")
        assert said.code == 0 and str(Path("third") / "report.html") in said.out
        for file in ("comparison.json", "report.html"):
            assert (tmp_path / "third" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_several_students_in_one_command(compared: Path, plies: Plies, tmp_path: Path) -> None:
    teacher, student = runs_of(compared)
    said = plies("report", teacher, student, teacher, "--out", "o")
    assert said.code == 0 and "student 2" in said.out
    assert len(json.loads((tmp_path / "o" / "comparison.json").read_text())["sides"]) == 3
    gated = plies("gate", "o/comparison.json", "--margin", "80")
    # Random weights answer nothing: whatever the margin, that is no pass.
    verdicts = gated.out.replace("PARTIAL ", "")
    assert gated.code == 4 and all(f"student {i}: inconclusive" in verdicts for i in (1, 2)), gated.out


def test_replies_are_read_again_without_an_engine(compared: Path, plies: Plies, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(run, tmp_path / f"{i}")) for i, run in enumerate(runs_of(compared))]
    said = plies("reread", *runs, "--extractor", "strict")
    assert said.code == 0 and said.out.count("strict@1") == 2 and "sums" in said.out
    assert plies("report", *runs, "--out", "o").code == 0
    row = json.loads((tmp_path / "o" / "comparison.json").read_text())["tasks"][0]["rungs"]["generation"]
    assert list(row["readings"]) == ["strict@1"] and row["metric"] == "exact_match"
    wrong = plies("reread", runs[0], "--extractor", "stric")
    assert wrong.code == 2 and "did you mean 'strict'" in wrong.err


def test_report_that_cannot_be_written(compared: Path, plies: Plies, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = plies("report", *runs_of(compared), "--out", "file/inside")
    assert said.code == 2 and "cannot be written" in said.err and "--out DIR" in said.err


@pytest.mark.parametrize("damage", ["format", "lacks", "type", "half"])
def test_comparison_that_is_damaged(damage: str, compared: Path, plies: Plies, tmp_path: Path) -> None:
    (first,) = compared.glob("*/comparison.json")
    content = json.loads(first.read_text())
    if damage == "format":
        content["format"] = 99
    elif damage == "lacks":
        del content["tasks"]
    elif damage == "type":
        content["tasks"][0]["subjects"] = "many"
    text = json.dumps(content)
    (tmp_path / "c.json").write_text(text[: len(text) // 2] if damage == "half" else text)
    said = plies("report", "c.json")
    wanted = {
        "format": "format 99",
        "lacks": "lacks `tasks`",
        "type": "subjects should be an integer",
        "half": "not JSON",
    }
    assert said.code == 2 and wanted[damage] in said.err and "  try" in said.err


def test_runs_of_different_limits_are_not_compared(compared: Path, plies: Plies, tiny_llama: Path, suite: Path) -> None:
    made = plies("evaluate", tiny_llama, "--suite", suite, "--limit", "2", "--out", "limited", "--device", "cpu")
    assert made.code == 0
    limited = made.out.strip().splitlines()[-1]
    said = plies("report", limited, runs_of(compared)[1])
    assert said.code == 2 and "their limits differ" in said.err and "--limit 2" in said.err


def test_limit_is_told_as_partial(compared: Path, plies: Plies, tiny_llama: Path, suite: Path) -> None:
    said = plies("compare", tiny_llama, tiny_llama, "--suite", suite, "--limit", "2", "--device", "cpu", "--out", "o")
    assert said.code == 0 and "at most 2 items per task" in said.out.replace("\n", " ")


def test_second_time_only_reads(compared: Path, plies: Plies, tiny_llama: Path, suite: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (compared / "runs").rglob("*") if path.is_file()}
    said = plies("evaluate", tiny_llama, "--suite", suite, "--out", compared, "--device", "cpu")
    assert said.code == 0 and "complete in" in said.err and "loading" not in said.err
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed <= {".lock"}


def test_records_that_were_deleted_are_made_again(
    plies: Plies, tiny_llama: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("evaluate", tiny_llama, "--suite", suite, "--out", "o", "--device", "cpu", "--limit", "2")
    run = Path(plies(*args).out.strip().splitlines()[-1])
    file = run / "records" / "sums.generation.jsonl"
    whole = file.read_bytes()
    file.write_text("not a record\n")
    said = plies("report", run, run)
    assert said.code == 2 and "delete that file" in said.err
    file.unlink()
    assert plies(*args).code == 0 and file.read_bytes() == whole
    assert plies("report", run, run).code == 0


# --- the gate -------------------------------------------------------------------------------------------------------


def losing(compared: Path, lost: int, n: int = 1000) -> str:
    """The comparison with `n` items a task, all right but for `lost` of the student's replies, and nothing else to doubt."""
    (first,) = compared.glob("*/comparison.json")
    content = json.loads(first.read_text())
    content["unpaired"] = []
    for task in content["items_of"]:
        table = {"paired": "1" * n, "statuses": ["s" * n] * 2, "fragile": [[], []]}
        scores = {"loglikelihood": [1.0] * n, "generation": [0.0] * lost + [1.0] * (n - lost)}
        task["items"], task["subjects"] = [f"{i:04}" for i in range(n)], []
        task["rungs"] = {rung: {**table, "scores": [[1.0] * n, scores[rung]]} for rung in task["rungs"]}
    for row in (*content["tasks"], content["overall"]):
        for side in row["rungs"]["generation"]["sides"]:
            side |= {"coverage": 1.0, "truncation": 0.0, "cut_prompts": 0, "fallbacks": 0}
            side["score"] |= {"value": 90.0, "low": 80.0, "high": 95.0}
    return json.dumps(content)


@pytest.mark.parametrize(("lost", "code", "word"), [(3, 0, "pass"), (80, 1, "regress"), (30, 4, "inconclusive")])
def test_gate_leaves_with_its_verdict(
    lost: int, code: int, word: str, compared: Path, plies: Plies, tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text(losing(compared, lost))
    said = plies("gate", "c.json", "--margin", "3")
    assert said.code == code and said.out.removeprefix("PARTIAL ").startswith(f"{word}: ")
    assert "margin of −3 pp" in said.out


def test_console_without_a_minus_keeps_the_sign(compared: Path, tmp_path: Path) -> None:
    """The gap and the margin keep their minus sign, in the gate's line and in the table."""
    encoding = "cp1252"
    (first,) = compared.glob("*/comparison.json")
    content = json.loads(first.read_text())
    for row in (*content["tasks"], content["overall"]):
        row["rungs"]["generation"]["sides"][1]["gap"] |= {"value": -29.0, "low": -33.5, "high": -24.5}
    (tmp_path / "t.json").write_text(json.dumps(content))
    (tmp_path / "c.json").write_text(losing(compared, 290))
    gate = [sys.executable, "-m", "perplexity_lies.cli", "gate", "c.json", "--margin", "3"]
    table = [sys.executable, "-m", "perplexity_lies.cli", "report", "t.json", "--out", "r"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    for command in (gate, table):
        said = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path).stdout.decode(encoding)
        assert "-29.0" in said and ("[-33.5, -24.5]" in said or command is gate) and "?" not in said
        assert "margin of -3 pp" in said or command is table


@pytest.mark.parametrize("margin", ["0", "-1", "101", "nan", "inf"])
def test_margin_that_cannot_be_judged(margin: str, compared: Path, plies: Plies) -> None:
    (first,) = compared.glob("*/comparison.json")
    said = plies("gate", first, f"--margin={margin}")
    assert said.code == 2 and "(0, 100]" in said.err


def test_suite_with_an_odd_name_writes_nowhere_else(plies: Plies, tiny_llama: Path, tmp_path: Path) -> None:
    odd = write_suite(tmp_path / "s", name="../../[red]x")
    out = tmp_path / "deep" / "out"
    said = plies("compare", tiny_llama, tiny_llama, "--suite", odd, "--limit", "1", "--device", "cpu", "--out", out)
    assert said.code == 0 and {path.name for path in tmp_path.iterdir()} == {"s", "deep"}
    assert len(list(out.glob("*/comparison.json"))) == 1 and [p.name for p in out.parent.iterdir()] == ["out"]
