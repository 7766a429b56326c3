"""The HTML report as text, and its figures as data; what a browser makes of it is in `test_report_browser`."""

import base64
import gzip
import json
import re
import shutil

import pytest

from perplexity_lies.errors import MissingError
from perplexity_lies.read.compare import compare_runs
from perplexity_lies.read.comparison import load_comparison
from perplexity_lies.read.wording import signed
from perplexity_lies.rungs import CONTRASTS, GENERATION, HIDDEN_GAP, LOGLIKELIHOOD, RUNGS
from reports import figures, html, screenshot, telling, texts
from reports.html import embedded_json, render, write


def test_same_page_from_the_comparison_file(demo, tmp_path):
    assert render(load_comparison(demo.write(tmp_path / "comparison.json"))) == render(demo)


def test_says_what_the_comparison_says(demo, demo_page):
    page = demo_page.read_text(encoding="utf-8")
    assert demo.headline() in page
    assert 'id="partial"' in page and "at most 60 items" in page
    assert signed(demo.overall.contrast(HIDDEN_GAP.name).value) in page
    for row in demo.tasks:
        assert row.title in page
    for word in ("sha256:5u17e", "0.4.13", demo.baseline.manifest.checkpoint.digest):
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
    assert page.count("<script") == page.count("</script>") == 6  # figures, table, places, one chunk, plotly, ours


def test_embedded_json_survives_the_html_parser():
    content = {"a": "</script><!--\u2028\u2029&amp;", "b": [1.5, None]}
    text = embedded_json(content)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == content


def test_figures_show_the_numbers(demo):
    by_name = {trace.name: trace for trace in figures.gaps(demo).data}
    expected = [row.contrast(HIDDEN_GAP.name) for row in demo.rows]
    trace = by_name["hidden gap"]
    assert list(trace.x) == [found.value for found in expected]
    assert [x + up for x, up in zip(trace.x, trace.error_x.array, strict=True)] == pytest.approx(
        [f.high for f in expected]
    )
    assert [x - down for x, down in zip(trace.x, trace.error_x.arrayminus, strict=True)] == pytest.approx(
        [f.low for f in expected]
    )
    student = next(trace for trace in figures.scores(demo).data if trace.name == "generation: student")
    assert list(student.x) == [row.rungs[GENERATION].sides[1].score.value for row in demo.rows]


def test_figures_number_the_students(trio):
    for chart in (figures.scores(trio), figures.gaps(trio)):
        numbered = [trace for trace in chart.data if trace.text]
        assert len(numbered) == (2 if chart.data[0].mode == "lines" else 3)
        for trace in numbered:
            assert set(trace.text) == {"1", "2", "3"}
            assert len(set(trace.y)) == len(trace.y), "every student and task has a lane of its own"


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


def packed_in(page, name):
    """What a packed `<script>` of the page holds."""
    found = re.search(f'id="{name}">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(found[1]))) if found else None


def test_all_items_of_a_small_comparison_are_in(demo):
    page = render(demo)
    table, places = packed_in(page, "data-table"), packed_in(page, "data-places")
    assert sum(places["sizes"]) == len(places["order"]) == 300
    chunks = [packed_in(page, f"data-texts-{i}") for i in range(len(places["sizes"]))]
    inside = [item for chunk in chunks for item in chunk]
    replies = demo.replies.set_index(["task", "item", "rung", "side"])
    for (t, i), said in zip(places["order"], inside, strict=True):
        task = table["tasks"][t]
        for side, label in enumerate(("teacher", "student")):
            wanted = replies.loc[(task["task"], task["items"][i], GENERATION, label)]
            [reply] = said[GENERATION]["sides"][side]
            assert (reply["text"], reply["score"]) == (wanted.text, wanted.score)
            assert task["rungs"][GENERATION]["answers"][side][i] == wanted.answer
    assert "left-out" not in page


def test_the_most_telling_items_come_first(demo, trio):
    for comparison in (demo, trio):
        order = telling.telling_order(comparison)
        assert len(order) == len(set(order)) == sum(len(task.items) for task in comparison.items_of)

    def scores(t, i, rung):
        return [side[i] for side in demo.items_of[t].rungs[rung].scores]

    hidden = [
        scores(t, i, LOGLIKELIHOOD)[1] == 1 and scores(t, i, GENERATION) == [1, 0]
        for t, i in telling.telling_order(demo)
    ]
    assert sum(hidden) > 25 and all(hidden[: sum(hidden)])
    assert len({t for t, _ in telling.telling_order(demo)[:6]}) > 2, "tasks take turns"


def packed_sizes(page):
    """Characters of the table, and of all texts."""
    found = dict(re.findall('id="(data-[a-z0-9-]+)">([^<]*)</script>', page))
    return {
        "table": len(found["data-table"]),
        "texts": sum(len(text) for name, text in found.items() if name.startswith("data-texts-")),
    }


def test_what_does_not_fit_is_said(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK_CHARACTERS", 20_000)
    room = packed_sizes(render(demo))
    page_bytes = len(html.plotly.offline.get_plotlyjs()) + html.OTHER_BYTES + room["table"] + room["texts"] // 2
    page = write(demo, tmp_path / "report.html", page_bytes=page_bytes)
    text = page.read_text(encoding="utf-8")
    places = packed_in(text, "data-places")
    assert page.stat().st_size <= page_bytes
    assert 50 < len(places["order"]) < 250 and packed_sizes(text)["texts"] <= room["texts"] // 2
    said = re.search('id="left-out">(.*?)</p>', text, re.DOTALL)[1]
    assert f"Texts of {len(places['order'])} of 300 items" in said and telling.RULE.split(";")[0] in said
    for side in demo.sides:
        assert side.run.split("/")[-1] in said
    assert len(packed_in(text, "data-table")["tasks"]) == 5, "numbers of all items stay"


def test_a_long_text_loses_its_middle_and_says_how_much(handmade, tmp_path):
    prompt = "start " + "x" * 65_000 + " end"
    runs = [
        handmade.write_run(tmp_path / side, [handmade.record("t", "0", GENERATION, 1.0, prompt=prompt)])
        for side in "ts"
    ]
    [item] = packed_in(render(compare_runs(*runs)), "data-texts-0")
    head, left_out, tail = item[GENERATION]["prompt"]
    assert len(head) + left_out + len(tail) == len(prompt) and len(head) + len(tail) == texts.LONGEST_CHARACTERS
    assert head.startswith("start ") and tail.endswith(" end")


def test_without_run_directories_the_numbers_stay(handmade, tmp_path):
    runs = handmade.demo_pair(tmp_path, items=6)
    comparison = compare_runs(*runs)
    shutil.rmtree(runs[0])
    with (next((runs[1] / "records").iterdir())).open("a") as file:
        file.write(handmade.record("fact", "9999", GENERATION, 1.0).to_json() + "\n")
    page = render(comparison)
    assert "replies of the teacher are not in this page" in page and "nothing there" in page
    assert "replies of the student are not in this page" in page and "have changed" in page
    table = packed_in(page, "data-table")
    assert table["tasks"][0]["rungs"][GENERATION]["scores"][0] == [1.0] * 6
    assert packed_in(page, "data-places")["order"] == [] and "data-texts-0" not in page


def test_one_side_gone_leaves_the_others(handmade, tmp_path):
    runs = handmade.demo_pair(tmp_path, items=6)
    comparison = compare_runs(*runs)
    shutil.rmtree(runs[0])
    [item, *_] = packed_in(render(comparison), "data-texts-0")
    assert item[GENERATION]["sides"][0] == [] and item[GENERATION]["sides"][1][0]["text"]


def test_three_students_and_one_sided_tasks(trio):
    page = render(trio)
    for words in (
        "asked by generation only",
        "asked by log-likelihood only",
        "not asked",
        "org/first",
        ">S3<",
        "other@1",
    ):
        assert words in page
    for row in trio.rows:
        for side in (1, 2, 3):
            for found in (*(row.gap(rung, side) for rung in RUNGS), *(row.contrast(c.name, side) for c in CONTRASTS)):
                assert not found or signed(found.value) in page


def test_equal_runs_give_equal_pages(demo, tmp_path):
    assert render(demo, tmp_path) == render(demo, tmp_path)


def test_every_section_is_in_the_page(demo_page):
    page = demo_page.read_text(encoding="utf-8")
    for section in html.SECTIONS:
        assert (f'<section id="{section.name}"' in page) is (section.name != "readings")
