"""An exported student is the same model everywhere: here, and in transformers and lm-eval where this project is not installed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import perplexity_lies as plies
from distill.export import MODELING, export_checkpoint, load_exported, remote_code
from distill.miniature.teacher import new_teacher
from distill.recipe.settings import StudentConfig
from distill.students import hybrid
from distill.students.convert import assembled, new_student
from distill.students.hybrid import MIXERS, HybridForCausalLM
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.rungs import LOGLIKELIHOOD

ROOT = Path(__file__).parents[2]
NATS = 1e-4

ELSEWHERE = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("distill", "perplexity_lies", "suites", "reports"):
            raise ModuleNotFoundError(f"not installed here: {name}", name=name)

sys.meta_path.insert(0, Absent())
asked = json.loads(sys.argv[1])
import torch, transformers
torch.set_num_threads(1)
"""
"""The beginning of a program in an environment without this project."""

PLAIN_TRANSFORMERS = """
try:
    transformers.AutoConfig.from_pretrained(asked["checkpoint"], trust_remote_code=False)
    refused = False
except ValueError:
    refused = True
config = transformers.AutoConfig.from_pretrained(asked["checkpoint"], trust_remote_code=True)
model = transformers.AutoModelForCausalLM.from_pretrained(
    asked["checkpoint"], trust_remote_code=True, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(asked["checkpoint"], trust_remote_code=True)
ids = tokenizer(asked["text"], return_tensors="pt")["input_ids"]
made = model.generate(ids, max_new_tokens=12, do_sample=False)
with torch.no_grad():
    logits = model(ids).logits
print(json.dumps({
    "refused": refused, "types": config.layer_types, "module": type(model).__module__, "text": tokenizer.decode(made[0]),
    "logits": logits[0, -1].tolist(), "ours": sorted(name for name in sys.modules if name.partition(".")[0] == "distill"),
    "exact": sorted({str(p.dtype) for n, p in transformers.AutoModelForCausalLM.from_pretrained(
        asked["checkpoint"], trust_remote_code=True, dtype=torch.bfloat16).named_parameters() if n.endswith("A_log")})}))
"""

PLAIN_LM_EVAL = """
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
results = simple_evaluate(
    model="hf", model_args=f"pretrained={asked['checkpoint']},dtype=float32,trust_remote_code=True", tasks=["plain"],
    batch_size=4, device="cpu", bootstrap_iters=0, log_samples=True,
    task_manager=TaskManager(include_defaults=False, include_path=asked["tasks"]))
samples = sorted(results["samples"]["plain"], key=lambda sample: int(sample["doc_id"]))
print(json.dumps([[float(response[0][0]) for response in sample["resps"]] for sample in samples]))
"""


def elsewhere(program: str, home: Path, **asked: Any) -> Any:
    """What `program` prints, as JSON, run in isolated mode where importing this project fails."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(home / "hub")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE + program, json.dumps(asked)],
        cwd=home, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def student(
    teacher_config: Any, tokenizer: PreTrainedTokenizerBase, torch_state: None
) -> Callable[..., HybridForCausalLM]:
    """A student with a layer of every mixer, and one of attention; weights far from their starting values."""
    teacher: Qwen3ForCausalLM = new_teacher(dataclasses.replace(teacher_config, layers=len(MIXERS) + 1), tokenizer, 0)
    config = StudentConfig(mixer=(*MIXERS, "kda"), chunk_size=4, sliding_window=4, attention_sinks=2)
    whole = new_student(teacher, 1, config)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return assembled(teacher, whole, (len(MIXERS),)).eval()


@pytest.fixture
def exported(student: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    export_checkpoint(student, tokenizer, tmp_path / "student")
    return tmp_path / "student"


def test_the_code_is_whole_flat_and_needs_only_what_transformers_needs(tmp_path: Path) -> None:
    files = remote_code()
    assert f"{MODELING}.py" in files and "convert.py" not in files
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name, text in files.items():
        assert text.startswith("# Written by perplexity-lies ") and "Apache-2.0" in text.splitlines()[1]
        assert {f"{needed}.py" for needed in get_relative_imports(tmp_path / name)} <= set(files)
        libraries = set(get_imports(tmp_path / name)) - set(sys.stdlib_module_names)
        assert libraries <= {"torch", "transformers", "huggingface_hub"}, f"{name} cannot be loaded without {libraries}"


@pytest.mark.slow
def test_plain_transformers_opens_it(exported: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = "what is the answer to"
    found = elsewhere(PLAIN_TRANSFORMERS, tmp_path, checkpoint=str(exported), text=text)
    assert found["refused"], "code of a checkpoint must not run without trust"
    assert found["types"] == [*MIXERS, "full_attention"] and found["ours"] == []
    assert found["module"].endswith(f".{MODELING}")
    assert found["exact"] == ["torch.float32"]

    model, own = load_exported(exported)
    assert type(model) is HybridForCausalLM
    ids = own(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert found["logits"] == pytest.approx(model(ids).logits[0, -1].tolist(), abs=1e-5)
    assert found["text"] == own.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0])


@pytest.mark.slow
def test_plain_lm_eval_scores_it_as_here(exported: Path, tmp_path: Path) -> None:
    lines = (ROOT / "suites" / "miniature" / "items" / "recall.jsonl").read_text().splitlines()[:4]
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n")
    own = {"name": "own", "items": "items.jsonl", "max_new_tokens": 4, "extract": r"(\w+)", "chat_template": False}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [own]}))
    plain = {
        "task": "plain", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}", "num_fewshot": 0, "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "plain.yaml").write_text(yaml.safe_dump(plain))
    theirs = elsewhere(PLAIN_LM_EVAL, tmp_path, checkpoint=str(exported), tasks=str(tmp_path / "tasks"))

    # No `trust_remote_code`: the project's own code is used, the checkpoint's is not run.
    out = tmp_path / "out"
    run = plies.evaluate(str(exported), suite=tmp_path / "own.yaml", out=out, rungs=LOGLIKELIHOOD, quiet=True)
    ours = list(run.records())
    assert len(ours) == len(theirs) == 4
    for record, expected in zip(ours, theirs, strict=True):
        assert record.choice_loglikelihoods_nats == pytest.approx(expected, abs=NATS)


@pytest.mark.parametrize("trust", [False, True])
def test_where_the_project_is_installed_its_own_code_is_used(exported: Path, trust: bool) -> None:
    assert not resolve(str(exported)).trust_remote_code
    hybrid.register()
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=trust)
    assert type(model) is HybridForCausalLM


def test_weights_are_rounded_and_the_model_left_alone(
    student: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase, exported: Path
) -> None:
    loaded, _ = load_exported(exported)
    before, after = dict(student.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys()
    for name, parameter in before.items():
        exact = name.rsplit(".", 1)[-1] in ("A_log", "dt_bias")
        assert parameter.dtype == torch.float32
        assert torch.equal(after[name], parameter if exact else parameter.to(torch.bfloat16).float())
    assert not hasattr(student.config, "auto_map")


def test_exporting_again_replaces_what_was_there(
    student: HybridForCausalLM, tokenizer: PreTrainedTokenizerBase, exported: Path
) -> None:
    (exported / "left.txt").write_text("of an older export")
    export_checkpoint(load_exported(exported)[0], tokenizer, exported)
    again = {path.name for path in exported.iterdir()}
    assert again > {"config.json", "model.safetensors", "tokenizer.json", f"{MODELING}.py", "kda.py"}
    assert "left.txt" not in again and not exported.with_name("student.partial").exists()
    export_checkpoint(student, tokenizer, exported)
    assert {path.name for path in exported.iterdir()} == again


def test_a_teacher_is_exported_without_code(
    teacher: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    export_checkpoint(teacher, tokenizer, tmp_path / "teacher")
    assert not list((tmp_path / "teacher").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "teacher" / "config.json").read_text())
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")) is Qwen3ForCausalLM
    assert AutoTokenizer.from_pretrained(tmp_path / "teacher").eos_token_id == tokenizer.eos_token_id
