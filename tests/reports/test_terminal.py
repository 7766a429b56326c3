"""The terminal report at the widths that people have."""

import dataclasses
import io

import pytest
from rich.console import Console

from perplexity_lies.read.compare import compare_runs
from perplexity_lies.rungs import GENERATION, HIDDEN_GAP, LOGLIKELIHOOD
from reports.terminal import render


def printed(comparison, width, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Console(width=width, file=file, force_terminal=False, legacy_windows=False).print(render(comparison))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_fits_and_says_everything_at_any_width(demo, width):
    text = printed(demo, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for row in demo.tasks:
        assert row.task in text
    for word in ("overall", "PARTIAL", "builtin:student"):
        assert word in text
    gap = demo.overall.contrast(HIDDEN_GAP.name)
    assert f"{gap.value:+.1f}".replace("-", "−") in text


def test_shows_scores_gaps_and_coverage_of_a_task(demo):
    teacher, student = demo.tasks[2].rungs[GENERATION].sides
    block = printed(demo, 60).split("arith")[1].split("recall")[0]
    assert f"{teacher.score.value:.1f} → {student.score.value:.1f}" in block
    assert f"answered, cut 100, 0 → {100 * student.coverage:.0f}, {100 * student.truncation:.0f} %" in block


def test_ascii_terminals_get_ascii(demo):
    assert "[-" in printed(demo, 100, encoding="ascii")


def test_markup_in_a_task_name_is_text(handmade, tmp_path):
    runs = [
        handmade.write_run(tmp_path / side, [handmade.record("[red]t[/red]", "0", LOGLIKELIHOOD, 1.0)]) for side in "ts"
    ]
    comparison = compare_runs(*runs)
    assert "[red]t[/red]" in printed(comparison, 120)
    assert "no hidden gap" in printed(comparison, 120)


def test_many_cautions_are_counted_not_printed(demo):
    many = dataclasses.replace(demo, cautions=demo.cautions[:1] * 30)
    text = printed(many, 100)
    assert f"{many.cautions[0].kind} (30 cautions, in the report)" in text and text.count("!") == 1


@pytest.mark.parametrize("width", [60, 120])
def test_every_student_has_its_numbers(trio, width):
    text = printed(trio, width)
    assert max(map(len, text.splitlines())) <= width
    assert "org/first (S1), second (S2), third (S3)" in text
    block = text.split("both")[1].split("sums")[0]
    for side in (1, 2, 3):
        assert f"S{side}" in block
        for value in (trio.tasks[0].gap(GENERATION, side).value, trio.tasks[0].contrast(HIDDEN_GAP.name, side).value):
            assert f"{value:+.1f}".replace("-", "−") in block


@pytest.mark.parametrize("width", [60, 120])
def test_a_task_of_one_rung_says_so(trio, width):
    text = " ".join(printed(trio, width).split())
    assert text.count("gen. only") == text.count("log-lik only") == 3


def test_another_extractor_has_a_line(trio):
    gaps = " / ".join(f"{5 * -side:+.1f}".replace("-", "−") for side in (1, 2, 3))
    assert f"other@1 reads the generation gap as both {gaps} pp" in printed(trio, 120)
