"""What a failed guard does: to a comparison and its report, to a run that is continued, to `plies doctor`."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from perplexity_lies.api import compare
from perplexity_lies.cli import main
from perplexity_lies.engines import generation
from perplexity_lies.engines.decoding import decode_text
from perplexity_lies.read.comparison import load_comparison
from perplexity_lies.read.gate import Outcome, decide
from perplexity_lies.run import evaluate
from reports import html, terminal

from .faults import convolution_not_forked


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """One task of items of its own."""
    asked = [
        {"id": f"i{i}", "subject": "", "question": f"{i} and {i + 1} are", "choices": [f"{2 * i + 1}", "none"], "gold": 0,
         "target": f"{2 * i + 1}"}
        for i in range(4)
    ]  # fmt: skip
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in asked))
    task = {"name": "own", "items": "items.jsonl", "extract": r"(\d+)", "max_new_tokens": 4, "chat_template": False}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "tasks": [task]}))
    return tmp_path / "own.yaml"


def printed(comparison: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal.render(comparison))
    return console.export_text()


def test_a_failed_guard_flags_the_comparison(
    family_checkpoint: Callable[..., Path], suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = str(family_checkpoint("llama")), str(family_checkpoint("hybrid-kda"))
    out = tmp_path / "out"
    sound = compare(teacher, student, suite=suite, out=out, device="cpu", quiet=True)
    assert sound.guard_failures == () and "guard failed" not in printed(sound)
    assert "not a finding" not in sound.headline() and 'id="guard"' not in html.render(sound)
    assert all(check.passed is not False for check in sound.sides[1].manifest.guard.values())

    convolution_not_forked(monkeypatch, None)  # type: ignore[arg-type]
    broken = compare(teacher, student, suite=suite, out=tmp_path / "broken", device="cpu", quiet=True)
    assert {(failure.side, failure.check) for failure in broken.guard_failures} >= {("student", "shared prefixes")}
    assert {failure.side for failure in broken.guard_failures} == {"student"}
    first = broken.cautions[: len(broken.guard_failures)]
    assert {caution.kind for caution in first} == {"guard"} and "shared prefixes" in " ".join(c.text for c in first)
    assert "not a finding" in broken.headline() and "pp" not in broken.headline()
    verdict = decide(broken, 100)
    assert verdict.outcome is Outcome.INCONCLUSIVE and "student: shared prefixes" in verdict.reason
    assert "guard" not in decide(sound, 100).reason
    assert "the guard failed" in printed(broken).lower() and "student: shared prefixes" in printed(broken)
    page = html.render(load_comparison(broken.write(tmp_path / "comparison.json")))
    assert 'id="guard"' in page and "from scored alone" in page
    assert '<dl class="tiles">' not in page and '<dl class="tiles">' in html.render(sound)


def test_a_run_is_not_continued_with_other_weights_unseen(
    family_checkpoint: Callable[..., Path], suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal carries its fingerprint: answers of other weights are not taken for this checkpoint's."""
    asked = {"suite": suite, "device": "cpu", "quiet": True}
    run = evaluate(str(family_checkpoint("llama")), out=tmp_path, **asked)
    other = evaluate(str(family_checkpoint("llama", seed=1)), out=tmp_path, **asked)
    assert run.path != other.path
    before = dataclasses.replace(run.manifest, timings={})
    shutil.rmtree(run.path / "records")
    again = evaluate(str(family_checkpoint("llama")), out=tmp_path, **asked)
    assert dataclasses.replace(again.manifest, timings={}) == before

    shutil.rmtree(run.path / "records")
    shutil.copytree(other.path / "responses", run.path / "responses", dirs_exist_ok=True)
    mixed = evaluate(str(family_checkpoint("llama")), out=tmp_path, **asked)
    assert mixed.manifest.guard["weights"].passed is False


def test_a_run_whose_guard_failed_ends_with_it(
    family_checkpoint: Callable[..., Path],
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["evaluate", str(family_checkpoint("llama")), "--suite", str(suite), "--device", "cpu"]

    def left(*more: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as code:
            main([*command, *more])
        return code.value.code, capsys.readouterr().out.splitlines()[-1]

    assert left("--out", str(tmp_path / "sound"))[0] == 0
    stop_kept_in(monkeypatch)
    code, last = left("--out", str(tmp_path / "broken"))
    assert code == 1 and "The guard failed (stop strings)" in last
    code, last = left("--out", str(tmp_path / "broken"), "--accept-guard")
    assert code == 0 and "The guard failed (stop strings)" in last


def stop_kept_in(patch: pytest.MonkeyPatch) -> None:
    """The text of a reply is not cut at its stop string."""
    result_of = generation.result_of

    def uncut(row: Any, tokenizer: Any, context_tokens: int) -> Any:
        found = result_of(row, tokenizer, context_tokens)
        return dataclasses.replace(found, text=decode_text(tokenizer, row.ids))

    patch.setattr(generation, "result_of", uncut)


def test_doctor_prints_what_it_measured_and_exits_by_it(
    family_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(family_checkpoint("hybrid-kda")), "--device", "cpu"]
    with pytest.raises(SystemExit) as sound:
        main(command)
    said = capsys.readouterr().out
    assert sound.value.code == 0 and "The guard passed." in said and "negative control" in said
    assert "Not looked at: what every path shares" in said
    convolution_not_forked(monkeypatch, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as broken:
        main(command)
    said = capsys.readouterr().out
    assert broken.value.code == 1 and "FAILED" in said and "shared prefixes" in said


def changed(source: Path, target: Path, template: str) -> Path:
    """A copy of a checkpoint whose tokenizer adds BOS, with this chat template."""
    shutil.copytree(source, target)
    fast = json.loads((target / "tokenizer.json").read_text())
    whole = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    fast["post_processor"] = {
        "type": "TemplateProcessing", "single": whole, "pair": [*whole, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
    }  # fmt: skip
    (target / "tokenizer.json").write_text(json.dumps(fast))
    (target / "chat_template.jinja").write_text(template)
    return target


def test_doctor_judges_a_chat_template_as_a_run_does(
    family_checkpoint: Callable[..., Path], suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A BOS that the tokenizer alone adds is noted, for doctor and for a run; `--chat-template-args` reach the template."""
    template = (
        "{{ strftime_now('%H') }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
        "{% if not open %}<eos>{% endif %}"
    )
    checkpoint = str(changed(family_checkpoint("llama"), tmp_path / "c", template))

    def left(*command: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as code:
            main([*command, "--device", "cpu"])
        return code.value.code, " ".join(capsys.readouterr().out.split())

    code, said = left("doctor", checkpoint)
    assert code == 1 and "The guard failed (one question)" in said
    given = ("--chat-template-args", '{"open": true}')
    code, said = left("doctor", checkpoint, *given)
    assert code == 0 and "The guard passed" in said
    assert left("doctor", checkpoint, "--chat-template-args", "open")[0] == 2
    run = ("evaluate", checkpoint, "--suite", str(suite), "--out", str(tmp_path / "out"))
    assert left(*run)[0] == 1 and left(*run, *given)[0] == 0
    facts = [json.loads(path.read_text())["guard"] for path in (tmp_path / "out" / "runs").glob("*/manifest.json")]
    assert sorted(one["one question"]["passed"] for one in facts) == [False, True]
    assert all("the tokenizer puts BOS before a chat" in one["one question"]["detail"] for one in facts)


def test_doctor_of_nothing_usable_is_a_plain_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as code:
        main(["doctor", str(tmp_path / "none")])
    assert code.value.code in (2, 3) and "Traceback" not in capsys.readouterr().err
