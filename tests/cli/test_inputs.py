"""What was typed wrong leaves with its exit code, says what was found and what to type, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from .command import Plies, process, write_stock, write_suite

HEAVY = ("torch", "transformers", "lm_eval", "evalscope", "datasets", "pandas", "plotly", "numpy")


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
    for command in ("compare", "evaluate", "report", "reread", "gate", "suites", "demo", "doctor", "distill"):
        assert command in said.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["comparee"], "comparee"),
        (["compare", "a"], "argument 'STUDENT...'"),
        (["evaluate"], "argument 'checkpoint'"),
        (["evaluate", "a"], "--suite"),
        (["evaluate", "a", "--suit", "smoke"], "--suit"),
        (["evaluate", "a", "--suite", "smoke", "--dtype", "float8"], "float8"),
        (["evaluate", "a", "--suite", "smoke", "--limit", "abc"], "'--limit': Input should be a valid integer"),
        (["evaluate", "a", "--suite", "smoke", "--limit", "1.5"], "'--limit': Input should be a valid integer"),
        (["evaluate", "a", "--suite"], "--suite"),
        (["gate", "x.json", "--margin", "much"], "'--margin': Input should be a valid number"),
        (["report"], "argument 'paths'"),
        (["reread", "run"], "--extractor"),
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
    "data_not_named": (["evaluate", "LLAMA", "--suite", "smoke"], 3, "neither --data nor", "plies data fetch smoke"),
    "data_empty": (
        ["evaluate", "LLAMA", "--suite", "smoke", "--data", "."],
        3,
        "no datasets",
        "plies data fetch smoke",
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
    "report_of_three": (["report", "a", "b", "c"], 2, "nothing there", "plies evaluate"),
    "rung_unknown": (["evaluate", "LLAMA", "--suite", "SUITE", "--rungs", "genration"], 2, "'generation'?", "--rungs"),
    "rung_empty": (["evaluate", "LLAMA", "--suite", "SUITE", "--rungs="], 2, "no rung ''", "leave --rungs out"),
    "reread_of_nothing": (["reread", "none", "--extractor", "strict"], 2, "nothing there", "plies evaluate"),
    "report_of_nothing": (["report", "none"], 2, "No such file", "plies compare"),
    "report_of_no_runs": (["report", "none", "."], 2, "nothing there", "plies evaluate"),
    "report_of_a_file": (["report", "FILE", "FILE"], 2, "a file", "plies evaluate"),
    "report_of_no_json": (["report", "FILE"], 2, "not JSON", "plies compare"),
    "gate_of_no_margin": (["gate", "JSON"], 2, "neither", "--margin 3"),
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


def test_template_arguments_are_recorded_and_enter_the_identity(llama_copy: Path, suite: Path, tmp_path: Path) -> None:
    """From an option and from a suite; the clock that the template asks for stands in the manifest."""
    from perplexity_lies.run import evaluate

    template = "{{ strftime_now('%S') }} {{ messages[0]['content'] }}{{ 'no' if enable_thinking is false }}"
    (llama_copy / "chat_template.jinja").write_text(template)
    told: dict[str, Any] = {"out": tmp_path / "o", "device": "cpu", "limit": 2, "quiet": True, "rungs": "generation"}
    plain = evaluate(str(llama_copy), suite=suite, **told)
    given = evaluate(str(llama_copy), suite=suite, chat_template_args='{"enable_thinking": false}', **told)
    own = tmp_path / "own.yaml"
    own.write_text(suite.read_text() + "chat_template_args: {enable_thinking: false}\n")
    (tmp_path / "items.jsonl").write_text((suite.parent / "items.jsonl").read_text())
    by_suite = evaluate(str(llama_copy), suite=own, **told)
    assert len({run.path for run in (plain, given, by_suite)}) == 3
    facts = [
        {name: run.manifest.settings.get(name) for name in ("chat_template_args", "template_clock")}
        for run in (plain, given, by_suite)
    ]
    assert facts[0] == {"chat_template_args": None, "template_clock": "2025-01-01T12:00:00"}
    assert facts[1] == facts[2] == {**facts[0], "chat_template_args": '{"enable_thinking":false}'}
    assert given.manifest.engine["chat_template_args"] == '{"enable_thinking":false}'
    texts = [[record.prompt_tokens for record in run.records()] for run in (plain, given, by_suite)]
    assert texts[0] != texts[1] == texts[2]
