"""What the evaluation libraries do to a process is undone, and what they print stays in the log."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perplexity_lies.catalogue.suite import Suite
from perplexity_lies.protocols.hygiene import OFFLINE, quarantine

SCRIPT = """
import contextlib, json, locale, logging, os, random, signal, sys, threading, warnings
import numpy, torch
import rich.console  # draws a random number when it is imported, for the numbers of its styles

logging.getLogger("of.the.user").setLevel(logging.DEBUG)
logging.getLogger("transformers").setLevel(logging.ERROR)
logging.getLogger().addHandler(logging.NullHandler())
random.seed(5); numpy.random.seed(6); torch.manual_seed(7)
warnings.simplefilter("once", DeprecationWarning)
os.environ["HF_HUB_OFFLINE"] = "0"

def state():
    root, manager = logging.getLogger(), logging.getLogger().manager
    loggers = {n: l for n, l in manager.loggerDict.items() if isinstance(l, logging.Logger)}
    return {
        "environment": dict(os.environ),
        "root": [root.level, root.disabled, [repr(h) for h in root.handlers], manager.disable],
        "loggers": {n: [l.level, l.propagate, l.disabled, [repr(h) for h in l.handlers]] for n, l in loggers.items()},
        "warnings": repr(warnings.filters),
        "python": repr(random.getstate()),
        "numpy": repr(numpy.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "streams": [id(sys.stdout), id(sys.stderr), [os.fstat(fd)[:3] for fd in (0, 1, 2)]],
        "path": list(sys.path),
        "cwd": os.getcwd(),
        "signals": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
        "numerics": [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
                     torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                     torch.backends.cudnn.deterministic, repr(numpy.geterr())],
        "locale": locale.setlocale(locale.LC_ALL),
    }

checkpoint, suite, out, told = sys.argv[1:]
before = state()
from perplexity_lies import evaluate
from perplexity_lies.errors import PliesError
raised = ""
try:
    evaluate(checkpoint, suite=suite, out=out, quiet=True, device="cpu")
except PliesError as error:
    raised = str(error)
after = state()
born = {n: v for n, v in after["loggers"].items() if n not in before["loggers"]}
after["loggers"] = {n: v for n, v in after["loggers"].items() if n in before["loggers"]}
changed = {k: [before[k], after[k]] for k in before if before[k] != after[k]}
with open(told, "w") as file:
    json.dump({"changed": changed, "raised": raised, "born_with_handlers": [n for n, v in born.items() if v[3]],
               "loaded": [m for m in ("lm_eval", "evalscope") if m in sys.modules]}, file)
"""


@pytest.mark.parametrize("raising", ["", "evalscope", "lm_eval"])
def test_process_is_as_before(
    raising: str, tiny_llama: Path, items_suite: Callable[..., Suite], stock: Callable[..., Path], tmp_path: Path
) -> None:
    suite = stock(raising) if raising else items_suite(3).path
    told = tmp_path / "told.json"
    arguments = [str(tiny_llama), str(suite), str(tmp_path / "out"), str(told)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PLIES_DATA": str(tmp_path / "hub") if raising else ""}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert (ran.stdout, ran.stderr) == ("", "")
    found = json.loads(told.read_text())
    assert found["changed"] == {} and found["born_with_handlers"] == []
    assert bool(raising) == bool(found["raised"]), found["raised"]
    assert "lm_eval" in found["loaded"] and (raising == "lm_eval" or "evalscope" in found["loaded"])
    if raising:
        assert {"evalscope": "evalscope has no benchmark", "lm_eval": "lm-eval cannot load"}[raising] in found["raised"]
    logs = {path.name for path in (tmp_path / "out").rglob("*.log")}
    told_early = raising == "evalscope"
    assert logs >= ({"suite.log"} if told_early else {"suite.log", "loading.log", "loglikelihood.log"})


@pytest.fixture
def stock(tmp_path: Path, items_suite: Callable[..., Suite]) -> Callable[..., Path]:
    """A suite of one stock task over a small mirror, which one of the libraries refuses."""

    def build(refuser: str) -> Path:
        data = tmp_path / "hub" / "o" / "d"
        data.mkdir(parents=True)
        (data / "test.jsonl").write_text('{"a": "x", "b": ["y", "z"], "c": 0}\n')
        kind, benchmark = ("nonsense", "arc") if refuser == "lm_eval" else ("multiple_choice", "nonsense")
        (tmp_path / "x.yaml").write_text(
            f"task: x\noutput_type: {kind}\ndataset_path: json\ntest_split: test\n"
            "doc_to_text: a\ndoc_to_choice: b\ndoc_to_target: c\n"
        )
        (tmp_path / "own.yaml").write_text(
            "name: own\ntasks:\n- name: own\n"
            "  loglikelihood: {lm_eval_file: x.yaml, dataset: o/d, metric: acc, item: '{{ a }}'}\n"
            f"  generation: {{evalscope: {benchmark}, dataset: o/d, max_new_tokens: 4, metric: accuracy, item: '{{{{ a }}}}'}}\n"
        )
        return tmp_path / "own.yaml"

    return build


def on_a_terminal(command: list[str], **options: Any) -> tuple[int, str]:
    """Exit code and everything that a terminal would show."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            shown += part
            if not part:
                break
        elif process.poll() is not None:
            break
    os.close(ours)
    return process.wait(), shown.decode("utf-8", "replace")


def test_terminal_shows_our_steps_and_nothing_of_the_libraries(
    tiny_llama: Path, items_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "odd [bold]name"  # not markup
    checkpoint.symlink_to(tiny_llama)
    asked = [str(checkpoint), "--suite", str(items_suite(3).path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "200"}
    command = [sys.executable, "-m", "perplexity_lies.cli", "evaluate", *asked]
    code, shown = on_a_terminal(command, env=environment, cwd=tmp_path)
    assert code == 0, shown
    for ours in ("[bold]name: loading", "log-likelihood", "generation", "evalscope judges own", "9/9", "3/3"):
        assert ours in shown, shown
    for theirs in (
        "Evaluating[",
        "Running[eval]",
        "Loading weights",
        "Tokenizing",
        "fatal: not a git",
        "eval_type",
        "Args:",
    ):
        assert theirs not in shown, shown


def test_quarantine_keeps_child_processes_and_bare_descriptors_off_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log, filters = tmp_path / "log", warnings.filters
    print("before")
    with quarantine(log):
        print("printed")
        print("complained", file=sys.stderr)
        os.write(2, b"bare\n")
        subprocess.run([sys.executable, "-c", "import sys; print('child', file=sys.stderr)"], check=True)
        logging.getLogger("some.library").warning("logged")
        print(warnings.filters is not filters)
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    text = log.read_text()
    assert all(word in text for word in ("printed", "complained", "bare", "child", "logged", "True"))
    assert warnings.filters is filters


def test_quarantine_reads_no_network_and_lets_go_when_its_guest_raises(tmp_path: Path) -> None:
    import datasets.config
    import huggingface_hub.constants

    before = (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_CACHE, dict(os.environ))
    with pytest.raises(ZeroDivisionError), quarantine(tmp_path / "log"):
        assert huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        assert {name: os.environ[name] for name in OFFLINE} == OFFLINE
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        assert cache.is_dir() and cache != before[1]
        raise ZeroDivisionError
    assert (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_CACHE, dict(os.environ)) == before
    assert not cache.exists()


def test_files_that_a_guest_logs_to_are_closed(tmp_path: Path) -> None:
    with quarantine(tmp_path / "log"):
        handler = logging.FileHandler(tmp_path / "guest.log")
        logging.getLogger().addHandler(handler)
        logging.getLogger("born.inside").addHandler(logging.FileHandler(tmp_path / "born.log"))
        logging.getLogger().warning("x")
    assert handler.stream is None
    assert logging.getLogger("born.inside").handlers == [] and handler not in logging.getLogger().handlers
