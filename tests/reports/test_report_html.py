"""The HTML report as text, and its figures as data; what a browser makes of it is in `test_report_browser`."""

import json
import re

import pytest

from perplexity_lies.errors import MissingError
from perplexity_lies.read.comparison import load_comparison
from perplexity_lies.read.wording import signed
from perplexity_lies.record.records import GENERATION
from reports import figures, screenshot
from reports.html import embedded_json, render


def test_same_page_from_the_comparison_file(demo, tmp_path):
    assert render(load_comparison(demo.write(tmp_path / "comparison.json"))) == render(demo)


def test_says_what_the_comparison_says(demo, demo_page):
    page = demo_page.read_text(encoding="utf-8")
    assert demo.headline() in page
    assert 'id="partial"' in page and "at most 60 items" in page
    assert signed(demo.overall.hidden_gap.value) in page
    for row in demo.tasks:
        assert row.title in page
    for word in ("sha256:5u17e", "0.4.13", demo.provenance["teacher"]["checkpoint"]["digest"]):
        assert word in page


def test_nothing_is_fetched(demo_page):
    page = demo_page.read_text(encoding="utf-8")
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", own)
    assert "default-src 'none'" in own


def test_markup_from_a_run_is_never_markup(hostile):
    page = render(hostile)
    assert "<script>window.pwned" not in page
    assert "<img src=x" not in page
    assert page.count("<script") == page.count("</script>") == 4


def test_embedded_json_survives_the_html_parser():
    content = {"a": "</script><!--\u2028\u2029&amp;", "b": [1.5, None]}
    text = embedded_json(content)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == content


def test_figures_show_the_numbers(demo):
    by_name = {trace.name: trace for trace in figures.gaps(demo).data}
    expected = [row.hidden_gap for row in demo.rows]
    trace = by_name["hidden gap"]
    assert list(trace.x) == [found.value for found in expected]
    assert [x + up for x, up in zip(trace.x, trace.error_x.array, strict=True)] == pytest.approx(
        [f.high for f in expected]
    )
    assert [x - down for x, down in zip(trace.x, trace.error_x.arrayminus, strict=True)] == pytest.approx(
        [f.low for f in expected]
    )
    student = next(trace for trace in figures.scores(demo).data if trace.name == "generation: student")
    assert list(student.x) == [row.protocol(GENERATION).student.score.value for row in demo.rows]


def test_figure_labels_are_escaped(hostile):
    labels = figures.scores(hostile).layout.yaxis.ticktext
    assert labels[0].startswith("&lt;script&gt;")


def test_screenshot_says_what_is_missing(tmp_path, monkeypatch, capsys):
    assert screenshot.main([str(tmp_path / "none.html"), str(tmp_path / "out.png")]) == MissingError.exit_code
    assert "no report" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "report.html").write_text("<p>")
    assert screenshot.main([str(tmp_path / "report.html"), str(tmp_path / "out.png")]) == MissingError.exit_code
    assert "apt-get install chromium" in capsys.readouterr().err
