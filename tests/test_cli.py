"""The commands: what was typed wrong leaves with its exit code, says what was found and what to type, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from perplexity_lies.cli import main

ITEMS = [
    {"id": f"i{i}", "question": f"{i} + 1 = ?", "choices": [str(i + 1), str(i + 2)], "gold": 0, "target": str(i + 1)}
    for i in range(4)
]
HEAVY = ("torch", "transformers", "lm_eval", "evalscope", "datasets", "pandas", "plotly", "numpy")


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


Plies = Callable[..., Said]


@pytest.fixture
def plies(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plies:
    """`plies("suites", "smoke")` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLIES_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: Any) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return Said(int(left.value.code or 0), shown.out, shown.err)

    return run


def process(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perplexity_lies.cli", *map(str, args)]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)


def write_suite(folder: Path, name: str = "own", **task: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    settings = {
        "name": "sums",
        "items": "items.jsonl",
        "extract": r"(\d+)",
        "max_new_tokens": 4,
        "chat_template": False,
    }
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": name, "tasks": [{**settings, **task}]}))
    return folder / "own.yaml"


def write_stock(folder: Path, lm_eval: str = "arc/arc_easy.yaml", **generation: Any) -> Path:
    """A stock task over a mirror with four rows, `folder/hub`."""
    data = folder / "hub" / "o" / "d"
    (data / "ARC-Easy").mkdir(parents=True)
    import datasets

    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": f"q{i}", "question": f"which {i}?", "choices": choices, "answerKey": "B"} for i in range(4)]
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(rows).to_parquet(data / "ARC-Easy" / f"{split}.parquet")
    files = [{"split": split, "path": f"ARC-Easy/{split}.parquet"} for split in ("train", "validation", "test")]
    configs = [{"config_name": name, "data_files": files} for name in ("ARC-Easy", "ARC-Challenge")]
    card = yaml.safe_dump({"configs": configs})
    (data / "README.md").write_text(f"---\n{card}---\n")
    asked = {
        "evalscope": "arc", "dataset": "o/d", "subset": "ARC-Easy", "max_new_tokens": 4, "metric": "accuracy",
        "item": "{{ metadata.id }}", **generation,
    }  # fmt: skip
    ranked = {"lm_eval": lm_eval, "dataset": "o/d", "metric": "acc", "item": "{{ id }}"}
    tasks = [{"name": "own", "loglikelihood": ranked, "generation": asked}]
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": tasks}))
    return folder / "own.yaml"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"))


# --- the command line itself ----------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    """What makes `plies --help` quick; the time itself hangs on the machine."""
    code = (
        "import sys\nfrom perplexity_lies.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as left:\n    assert not left.code\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    for args in (["--help"], ["compare", "--help"], ["suites"]):
        ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert "LOADED []" in ran.stdout, ran.stdout + ran.stderr


def test_help_names_the_commands(plies: Plies) -> None:
    said = plies("--help")
    assert said.code == 0
    for command in ("compare", "evaluate", "report", "gate", "suites", "demo", "doctor", "distill"):
        assert command in said.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["comparee"], "comparee"),
        (["compare", "a"], "argument 'student'"),
        (["evaluate"], "argument 'checkpoint'"),
        (["evaluate", "a"], "--suite"),
        (["evaluate", "a", "--suit", "smoke"], "--suit"),
        (["evaluate", "a", "--suite", "smoke", "--dtype", "float8"], "float8"),
        (["evaluate", "a", "--suite", "smoke", "--limit", "abc"], "'--limit': Input should be a valid integer"),
        (["evaluate", "a", "--suite", "smoke", "--limit", "1.5"], "'--limit': Input should be a valid integer"),
        (["evaluate", "a", "--suite"], "--suite"),
        (["gate", "x.json", "--margin", "much"], "'--margin': Input should be a valid number"),
        (["gate", "x.json"], "--margin"),
        (["report"], "argument 'paths'"),
        (["--version=3"], "--version"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_command_line_that_cannot_be_read(plies: Plies, args: list[str], said: str) -> None:
    found = plies(*args)
    assert found.code == 2 and said in found.err and "Error: " in found.err and found.out == ""


def test_no_command_shows_the_help(plies: Plies) -> None:
    said = plies()
    assert said.code == 2 and "compare" in said.out + said.err


# --- inputs that cannot be used -------------------------------------------------------------------------------------

INPUTS: dict[str, tuple[list[str], int, str, str]] = {
    # name: (arguments, exit code, in what was found, in what to type)
    "limit_zero": (["evaluate", "LLAMA", "--suite", "SUITE", "--limit", "0"], 2, "--limit 0", "--limit 50"),
    "limit_below": (["evaluate", "LLAMA", "--suite", "SUITE", "--limit=-3"], 2, "--limit -3", "--limit 50"),
    "suite_unknown": (["evaluate", "LLAMA", "--suite", "smoek"], 2, "did you mean 'smoke'", "--suite NAME"),
    "suite_is_a_directory": (["evaluate", "LLAMA", "--suite", "."], 2, "no suite '.'", "--suite FILE.yaml"),
    "data_not_there": (["evaluate", "LLAMA", "--suite", "smoke", "--data", "no"], 3, "not a directory", "--data DIR"),
    "data_is_a_file": (["evaluate", "LLAMA", "--suite", "smoke", "--data", "FILE"], 3, "a file", "--data DIR"),
    "data_not_named": (["evaluate", "LLAMA", "--suite", "smoke"], 3, "neither --data nor", "hf download"),
    "data_empty": (
        ["evaluate", "LLAMA", "--suite", "smoke", "--data", "."],
        3,
        "no datasets",
        "hf download --repo-type",
    ),
    "no_checkpoint": (["evaluate", "./none", "--suite", "SUITE"], 3, "does not exist", "ORG/NAME"),
    "empty_checkpoint": (["evaluate", "", "--suite", "SUITE"], 2, "names nothing", "builtin:teacher"),
    "no_builtin": (["evaluate", "builtin:teachr", "--suite", "SUITE"], 2, "did you mean 'teacher'", "builtin:teacher"),
    "file_checkpoint": (["evaluate", "FILE", "--suite", "SUITE"], 3, "is a file", "give"),
    "bare_directory": (["evaluate", ".", "--suite", "SUITE"], 3, "no config.json", "save_pretrained"),
    "second_missing": (["compare", "LLAMA", "./none", "--suite", "SUITE"], 3, "'./none' does not exist", "ORG/NAME"),
    "engine_unknown": (["evaluate", "LLAMA", "--suite", "SUITE", "--engine", "torhc"], 2, "'torch'?", "--engine torch"),
    "device_unknown": (
        ["evaluate", "LLAMA", "--suite", "SUITE", "--device", "tpu"],
        2,
        "not a device",
        "--device auto",
    ),
    "device_number": (["evaluate", "LLAMA", "--suite", "SUITE", "--device", "cuda:x"], 2, "not a device", "--device"),
    "out_is_a_file": (["evaluate", "LLAMA", "--suite", "SUITE", "--out", "FILE"], 2, "cannot be written", "--out DIR"),
    "report_of_three": (["report", "a", "b", "c"], 2, "3 paths", "comparison.json"),
    "report_of_nothing": (["report", "none"], 2, "No such file", "plies compare"),
    "report_of_no_runs": (["report", "none", "."], 2, "nothing there", "plies evaluate"),
    "report_of_a_file": (["report", "FILE", "FILE"], 2, "a file", "plies evaluate"),
    "report_of_no_json": (["report", "FILE"], 2, "not JSON", "plies compare"),
    "gate_of_no_json": (["gate", "FILE", "--margin", "2"], 2, "not JSON", "plies compare"),
    "gate_of_a_directory": (["gate", ".", "--margin", "2"], 2, "cannot use", "plies compare"),
    "gate_of_other_json": (["gate", "JSON", "--margin", "2"], 2, "not a comparison", "plies compare"),
    "suites_unknown": (["suites", "smoek"], 2, "did you mean 'smoke'", "--suite NAME"),
    "suites_data": (["suites", "smoke", "--data", "no"], 3, "not a directory", "--data DIR"),
}


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_input_that_cannot_be_used(name: str, plies: Plies, tiny_llama: Path, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "other.json").write_text("{}")
    places = {"LLAMA": tiny_llama, "SUITE": suite, "FILE": tmp_path / "file", "JSON": tmp_path / "other.json"}
    args, code, found, mend = INPUTS[name]
    said = plies(*(places.get(arg, arg) for arg in args))
    assert said.code == code, said
    assert "plies: " in said.err and found in said.err and mend in said.err, said.err
    assert "  try" in said.err


def test_gpu_that_is_not_there(plies: Plies, tiny_llama: Path, suite: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said = plies("evaluate", tiny_llama, "--suite", suite, "--device", "cuda")
    assert said.code == 3 and "no CUDA device" in said.err and "--device cpu" in said.err


def test_suite_that_asks_for_a_chat_template(plies: Plies, tiny_llama: Path, tmp_path: Path) -> None:
    asking = write_suite(tmp_path / "chat", chat_template=True)
    said = plies("evaluate", tiny_llama, "--suite", asking)
    assert said.code == 2 and "no chat_template in its tokenizer" in said.err and "chat_template: false" in said.err


@pytest.mark.parametrize(
    ("changed", "found", "mend"),
    [
        ({"lm_eval": "arc/arc_hard.yaml"}, "its lm-eval YAML is not there", "arc/arc_easy.yaml"),
        ({"lm_eval": "arc/arc_challenge_chat.yaml"}, "not ranked by log-likelihood", "output_type"),
        ({"evalscope": "arcc"}, "evalscope has no benchmark 'arcc'", "evalscope benchmark-info"),
        ({"subset": "ARC-Medium"}, "evalscope cannot load 'arc'", "subset:"),
        ({"metric": "acc"}, "no metric 'acc'", "metric:"),
    ],
    ids=["task", "not_ranked", "benchmark", "subset", "metric"],
)
def test_task_that_a_library_cannot_ask(
    changed: dict[str, Any], found: str, mend: str, plies: Plies, tiny_llama: Path, tmp_path: Path
) -> None:
    stock = write_stock(tmp_path, **changed)
    said = plies("evaluate", tiny_llama, "--suite", stock, "--data", tmp_path / "hub")
    assert said.code == 2 and found in said.err and mend in said.err, said.err


def break_template(path: Path) -> None:
    (path / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")


def break_numbers(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] *= 1e30
    tensors["lm_head.weight"] *= 1e30
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def break_config(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))


def break_tokenizer(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "FromTheFuture"
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (break_template, "the checkpoint's chat template does not take user messages"),
        (break_numbers, "log-likelihoods are not numbers"),
        (break_config, "check config.json"),
        (break_tokenizer, "its tokenizer cannot be read"),
    ],
)
def test_checkpoints_with_a_fault_of_their_own(
    damage: Callable[[Path], None], found: str, plies: Plies, llama_copy: Path, tmp_path: Path
) -> None:
    """Foreign code raises what it likes: the user is told of the checkpoint."""
    damage(llama_copy)
    said = plies("evaluate", llama_copy, "--suite", "miniature", "--limit", 1, "--out", tmp_path / "out")
    assert said.code == 3 and found in said.err and "Traceback" not in said.err, said.err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["nonsense"], 2, "nonsense"),
        (["evaluate", "./none", "--suite", "smoke"], 3, "neither --data nor PLIES_DATA"),
        (["gate", "none.json", "--margin", "1"], 2, "plies compare"),
        (["suites", "none"], 2, "plies: there is no suite"),
    ],
    ids=["command", "data", "gate", "suite"],
)
def test_same_from_a_shell(args: list[str], code: int, said: str, tmp_path: Path) -> None:
    ran = process(*args, cwd=tmp_path)
    assert ran.returncode == code and said in ran.stderr and "Traceback" not in ran.stderr and ran.stdout == ""


def test_reader_that_has_read_enough(tmp_path: Path) -> None:
    command = f"{sys.executable} -m perplexity_lies.cli suites smoke | head -c 10; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", f"for i in 1 2 3; do {command}; done"], capture_output=True, text=True)
    assert ran.stderr == "" and set(ran.stdout.replace("# Five pub", "").split()) <= {"0", "1"}


# --- what works -----------------------------------------------------------------------------------------------------


def test_suites_are_listed_and_shown(plies: Plies, tmp_path: Path) -> None:
    said = plies("suites")
    assert said.code == 0 and "smoke" in said.out and "arc_easy, arc_challenge" in said.out
    (tmp_path / "hub" / "allenai" / "ai2_arc").mkdir(parents=True)
    said = plies("suites", "smoke", "--data", "hub")
    assert said.code == 0 and "max_new_tokens: 64" in said.out
    assert f"# allenai/ai2_arc: {tmp_path / 'hub' / 'allenai' / 'ai2_arc'}" in said.out
    assert "# Rowan/hellaswag: hf download --repo-type dataset Rowan/hellaswag" in said.out
    assert "# openai/gsm8k: hf download" in plies("suites", "smoke").out


@pytest.fixture(scope="module")
def compared(
    tiny_llama: Path, tiny_checkpoint: Callable[..., Path], suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The --out of a comparison of two tiny checkpoints, made by the command in a process of its own."""
    out = tmp_path_factory.mktemp("compared") / "out"
    student = tiny_checkpoint("llama", seed=1)
    ran = process("compare", tiny_llama, student, "--suite", suite, "--out", out, "--device", "cpu", cwd=out.parent)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr and "loading" in ran.stderr
    assert "comparison.json" in ran.stdout and "report.html" in ran.stdout and "overall" in ran.stdout
    return out


def test_compare_leaves_runs_comparison_and_report(compared: Path) -> None:
    (comparison,) = compared.glob("*/comparison.json")
    content = json.loads(comparison.read_text())
    assert content["suite_name"] == "own" and content["limit"] is None and len(content["paired_items"]) == 4
    assert comparison.with_name("report.html").read_text().lstrip().lower().startswith("<!doctype html")
    runs = sorted((compared / "runs").iterdir())
    assert len(runs) == 2 and all(json.loads((run / "manifest.json").read_text())["complete"] for run in runs)


def runs_of(compared: Path) -> tuple[Path, Path]:
    """Teacher's and student's run, told apart by the comparison."""
    (comparison,) = compared.glob("*/comparison.json")
    teacher = json.loads(comparison.read_text())["provenance"]["teacher"]["checkpoint"]["digest"]
    runs = sorted(
        (compared / "runs").iterdir(),
        key=lambda run: json.loads((run / "manifest.json").read_text())["checkpoint"]["digest"] != teacher,
    )
    return runs[0], runs[1]


def test_report_from_two_runs_and_from_a_comparison_is_the_same(compared: Path, plies: Plies, tmp_path: Path) -> None:
    (first,) = compared.glob("*/comparison.json")
    assert plies("report", *runs_of(compared), "--out", "again").code == 0
    assert (tmp_path / "again" / "comparison.json").read_bytes() == first.read_bytes()
    for given in ("again", "again/comparison.json"):
        said = plies("report", given, "--out", "third")
        assert said.code == 0 and str(Path("third") / "report.html") in said.out
        assert (tmp_path / "third" / "comparison.json").read_bytes() == first.read_bytes()
        assert (tmp_path / "third" / "report.html").read_bytes() == first.with_name("report.html").read_bytes()


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
    wanted = {"format": "format 99", "lacks": "lacks ['tasks']", "type": "subjects should be int", "half": "not JSON"}
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


@pytest.mark.parametrize(
    ("low", "high", "code", "word"),
    [(-1.0, 1.0, 0, "pass"), (-9.0, -6.0, 1, "regress"), (-9.0, 1.0, 4, "inconclusive")],
)
def test_gate_leaves_with_its_verdict(
    low: float, high: float, code: int, word: str, compared: Path, plies: Plies, tmp_path: Path
) -> None:
    (first,) = compared.glob("*/comparison.json")
    content = json.loads(first.read_text())
    for row in (*content["tasks"], content["overall"]):
        row["generation"]["gap"] |= {"value": (low + high) / 2, "low": low, "high": high}
    (tmp_path / "c.json").write_text(json.dumps(content))
    said = plies("gate", "c.json", "--margin", "3")
    assert said.code == code and said.out.startswith(f"{word}: ") and "margin of −3 pp" in said.out


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
