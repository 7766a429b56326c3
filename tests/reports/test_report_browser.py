"""The HTML report in a real headless Chromium, opened from disk."""

import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import plotly.offline
import pytest

from perplexity_lies.read.compare import compare_runs
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD
from reports import html, texts
from reports.html import write
from reports.screenshot import screenshot

HOSTILE_START = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>"

pytestmark = pytest.mark.browser


class Visit:
    """A page, with all that it said and asked for."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(**options)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def count(self):
        return int(self.page.locator("#item-count").inner_text().split(" of ")[0])

    def choose(self, kind):
        self.page.locator(f"#filter-kind input[value={kind}]").check()
        return self.count()

    def search(self, words):
        """Count of items once all texts are searched, and what the page says was searched."""
        self.page.locator("#filter-text").fill(words)
        state = self.page.locator("#search-state")
        state.get_by_text("searched:").wait_for()
        return self.count(), state.inner_text()

    def open_first(self):
        self.page.locator(".item summary").first.click()
        self.page.locator(".item .body h3").last.wait_for()
        return self.page.locator(".item .body").first.inner_text()


@pytest.fixture
def visit(chromium):
    visits = []

    def of(path, **options):
        visits.append(Visit(chromium, path, **options))
        return visits[-1]

    yield of
    for each in visits:
        each.page.close()


def test_opens_in_silence_and_fetches_nothing(visit, demo_page):
    seen = visit(demo_page)
    seen.page.locator(".item summary").first.click()
    assert seen.said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in seen.asked)
    assert len([url for url in seen.asked if url.startswith("file:")]) == 1


def test_figures_are_drawn(visit, demo_page, demo):
    seen = visit(demo_page)
    # scores: 2 rungs x 2 sides; gaps: 3 kinds; one marker for each row.
    assert seen.page.locator("#chart-scores .scatterlayer .point").count() == 4 * len(demo.rows)
    assert seen.page.locator("#chart-gaps .scatterlayer .point").count() == 3 * len(demo.rows)
    labels = seen.page.locator("#chart-gaps .ytick").all_text_contents()
    assert [label.strip() for label in labels] == [*(row.task for row in demo.tasks), "overall"]


def test_filters_show_exactly_the_right_items(visit, demo_page, demo):
    seen, items = visit(demo_page), demo.items
    student_generates = items.generation_student_score >= 0.5
    teacher_generates = items.generation_teacher_score >= 0.5
    ranked = items.loglikelihood_student_score >= 0.5
    assert seen.choose("all") == len(items) == 300
    assert seen.choose("hidden-gap") == (ranked & ~student_generates).sum() > 25
    assert seen.choose("lost-generation") == (teacher_generates & ~student_generates).sum()
    assert seen.choose("lost-loglikelihood") == ((items.loglikelihood_teacher_score >= 0.5) & ~ranked).sum()
    unscored = (items.generation_student_status != "scored") | (items.generation_teacher_status != "scored")
    assert seen.choose("unanswered") == unscored.sum() > 0
    seen.choose("hidden-gap")
    seen.page.locator("#filter-task").select_option("recall")
    recall = items.task == "recall"
    assert seen.choose("hidden-gap") == (ranked & ~student_generates & recall).sum()


def test_pages_hold_every_item_once(visit, demo_page, demo):
    seen = visit(demo_page)
    wanted, found = seen.choose("hidden-gap"), []
    while True:
        found += seen.page.locator(".item .where").all_inner_texts()
        if seen.page.locator("#page-next").is_disabled():
            break
        seen.page.locator("#page-next").click()
    assert len(found) == len(set(found)) == wanted


def test_search_finds_ids_answers_and_texts(visit, demo_page, demo):
    seen = visit(demo_page)
    seen.choose("all")
    replies = demo.replies
    unsure = replies[replies.text.str.contains("I am not sure")].groupby(["task", "item"]).ngroups
    found, said = seen.search("I am NOT sure")
    assert found == unsure > 0 and "all texts" in said
    answer = replies[(replies.rung == GENERATION) & (replies.answer != "")].answer.iloc[0]
    with_answer = replies[
        replies[["answer", "text", "prompt", "gold", "item"]]
        .apply(lambda column: column.str.contains(answer))
        .any(axis=1)
        | replies.choices.map(lambda choices: any(answer in choice for choice in choices))
    ]
    assert seen.search(answer)[0] == with_answer.groupby(["task", "item"]).ngroups
    assert seen.search("arith")[0] == 60
    assert seen.search("nowhere to be found")[0] == 0
    assert seen.page.locator(".empty").is_visible()
    seen.page.locator("#filter-text").fill("")
    seen.page.locator("#item-count").get_by_text("300 of 300 items").wait_for()


def test_what_does_not_fit_is_searched_by_answer_and_says_where_it_lies(visit, demo, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK_CHARACTERS", 20_000)
    page_bytes = len(plotly.offline.get_plotlyjs()) + html.OTHER_BYTES + 30_000
    seen = visit(write(demo, tmp_path / "report.html", page_bytes=page_bytes))
    told = seen.page.locator("#left-out").inner_text()
    inside = int(told.split("Texts of ")[1].split(" of ")[0])
    assert 0 < inside < 300
    assert seen.choose("all") == 300
    found, said = seen.search("what is")  # in every prompt
    assert found == inside and f"the texts of {inside} of 300 items" in said
    absent = seen.page.get_by_text("texts not in this page")
    seen.page.locator("#filter-text").fill("fact")
    absent.first.wait_for()
    row = seen.page.locator(".item").filter(has=absent).first
    row.locator("summary").click()
    row.locator(".body h3").last.wait_for()
    body, name = row.locator(".body").inner_text(), row.locator(".where").inner_text().split()[1]
    for side, label in zip(demo.sides, ("teacher", "student"), strict=True):
        run, file = (
            next(line for line in body.splitlines() if line.startswith(f"{label}: "))
            .split(": ")[1]
            .split(",")[0]
            .split("/records/")
        )
        assert (tmp_path / run).resolve() == Path(side.run).resolve()
        assert f'"item": "{name}"' in (tmp_path / run / "records" / file).read_text(encoding="utf-8")


def test_without_texts_the_numbers_are_shown(visit, handmade, tmp_path):
    runs = handmade.demo_pair(tmp_path / "runs", items=6)
    comparison = compare_runs(*runs)
    shutil.rmtree(tmp_path / "runs")
    seen = visit(write(comparison, tmp_path / "report.html"))
    assert seen.page.locator(".texts-missing").count() == 2
    assert seen.choose("all") == 30
    text = seen.open_first()
    assert "Its texts are not in this page" in text and "score 1" in text
    assert seen.said == []


def test_an_item_shows_every_rung(visit, demo_page, demo):
    seen = visit(demo_page)
    seen.choose("hidden-gap")
    text = seen.open_first()
    task, name = seen.page.locator(".item .where").first.inner_text().split(" ")
    replies = demo.replies
    said = replies[(replies.task == task) & (replies.item == name)].set_index(["rung", "side"])
    for side in ("teacher", "student"):
        ranked, generated = said.loc[(LOGLIKELIHOOD, side)], said.loc[(GENERATION, side)]
        for words in (ranked.prompt, generated.prompt, generated.text, generated.finish_reason, generated.extractor):
            assert words in text
        for nats in ranked.choice_loglikelihoods_nats:
            assert f"{nats:.3f} nats" in text
    assert f"gold: {ranked.gold}" in text
    gold_row = seen.page.locator(".choices tbody tr").nth(ranked.choices.index(ranked.gold))
    assert gold_row.get_by_text("gold", exact=True).is_visible()
    assert gold_row.get_by_text("ranked first").count() == 2


def test_several_students_side_by_side(visit, trio, tmp_path):
    seen = visit(write(trio, tmp_path / "report.html"))
    items = trio.items
    both = items[items.task == "both"]
    wrong = [
        (both[f"generation_student_{i}_score"] < 0.5) & (both[f"loglikelihood_student_{i}_score"] >= 0.5)
        for i in (1, 2, 3)
    ]
    assert seen.choose("hidden-gap") == (wrong[0] | wrong[1] | wrong[2]).sum()
    for i in (1, 2, 3):
        seen.page.locator("#filter-student").select_option(f"student {i}")
        assert seen.count() == wrong[i - 1].sum()
    assert len({column.sum() for column in wrong}) == 3
    seen.choose("all")
    text = seen.open_first()
    for name in ("teacher", "org/first", "second", "third"):
        assert f"{name} says 0" in text
    assert text.count("also read as: b") == 4 and "other@1" in text and "fragile" in text
    assert text.count("-0.727 a character") == 4, "acc_norm ranks by nats per character: 8 nats over 11"
    bars = seen.page.locator(".item .bar").evaluate_all(
        "bars => bars.map(bar => bar.parentElement.offsetWidth && parseFloat(bar.style.width))"
    )
    assert bars[0] > bars[4], "the longer choice is ranked first although its nats are fewer"
    assert seen.said == []


def test_markup_from_a_run_stays_inert(visit, hostile, tmp_path):
    seen = visit(write(hostile, tmp_path / "report.html"))
    seen.choose("all")
    seen.open_first()
    for summary in seen.page.locator("summary").all():
        if not summary.evaluate("element => element.parentElement.open"):
            summary.click()
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.pwned") is None
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("script").count() == 7  # figures, table, places, one chunk, plotly twice, ours
    for where in ("h1 ~ *, .pair", ".numbers", ".item .where", ".item .asked", ".item pre", ".choices", "#provenance"):
        assert HOSTILE_START in " ".join(seen.page.locator(where).all_inner_texts()), where
    for words in ("prompt", "choice", "reply of the student", "answer"):
        assert words in seen.page.locator("#item-list").inner_text()
    assert HOSTILE_START[:20] in "".join(seen.page.locator("#chart-scores .ytick").all_text_contents())
    assert seen.said == []


def test_no_script_but_ours_would_run(visit, demo_page, tmp_path):
    """The second wall: were a tag to slip through, the content security policy stops it."""
    broken = tmp_path / "broken.html"
    slipped = "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    broken.write_text(demo_page.read_text(encoding="utf-8").replace("<main>", f"<main>{slipped}"), encoding="utf-8")
    seen = visit(broken)
    assert seen.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in line for line in seen.said)


def test_provenance_is_visible(visit, demo_page, demo):
    text = visit(demo_page).page.locator("#provenance").inner_text()
    for side in demo.sides:
        assert side.manifest.checkpoint.digest in text


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_sideways_scroll_and_readable_contrast(visit, demo_page, width, scheme):
    seen = visit(demo_page, viewport={"width": width, "height": 800}, color_scheme=scheme)
    seen.page.locator(".item summary").first.click()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = seen.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = scheme == "light"
    assert (sum(map(int, ink[4:-1].split(","))) < sum(map(int, paper[4:-1].split(",")))) is light


def test_thousands_of_items_stay_quick(visit, handmade, tmp_path):
    comparison = compare_runs(*handmade.demo_pair(tmp_path, items=1200))
    seen = visit(write(comparison, tmp_path / "report.html"))
    assert seen.choose("all") == 6000
    started = time.perf_counter()
    found, said = seen.search("not sure")
    assert 0 < found < 6000 and "all texts" in said
    assert time.perf_counter() - started < 4
    assert seen.page.locator(".item").count() == 25


def test_screenshot_is_a_picture_of_the_asked_size(chromium, demo_page, tmp_path):
    # In a process of its own: playwright's driver is already running in this one.
    out = tmp_path / "deep" / "report.png"
    command = [
        sys.executable,
        "-m",
        screenshot.__module__,
        str(demo_page),
        str(out),
        "--width",
        "640",
        "--height",
        "400",
    ]
    subprocess.run(command, check=True, timeout=60)
    data = out.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1280, 800)
