"""The HTML report in a real headless Chromium, opened from disk."""

import dataclasses
import struct
import subprocess
import sys

import pytest

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
        self.page.wait_for_selector("#chart-gaps .main-svg")

    def choose(self, kind):
        self.page.locator(f"#filter-kind input[value={kind}]").check()
        return int(self.page.locator("#item-count").inner_text().split(" of ")[0])


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
    # scores: 2 protocols x 2 sides; gaps: 3 kinds; one marker for each row.
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
    assert seen.choose("hidden") == (ranked & ~student_generates).sum() > 25
    assert seen.choose("lost-generation") == (teacher_generates & ~student_generates).sum()
    assert seen.choose("lost-loglikelihood") == ((items.loglikelihood_teacher_score >= 0.5) & ~ranked).sum()
    unscored = (items.generation_student_status != "scored") | (items.generation_teacher_status != "scored")
    assert seen.choose("unanswered") == unscored.sum() > 0
    seen.choose("hidden")
    seen.page.locator("#filter-task").select_option("recall")
    recall = items.task == "recall"
    assert seen.choose("hidden") == (ranked & ~student_generates & recall).sum()


def test_pages_hold_every_item_once(visit, demo_page, demo):
    seen = visit(demo_page)
    wanted, found = seen.choose("hidden"), []
    while True:
        found += seen.page.locator(".item .where").all_inner_texts()
        if seen.page.locator("#page-next").is_disabled():
            break
        seen.page.locator("#page-next").click()
    assert len(found) == len(set(found)) == wanted


def test_search_finds_replies(visit, demo_page, demo):
    seen = visit(demo_page)
    seen.choose("all")
    seen.page.locator("#filter-text").fill("I am NOT sure")
    hits = demo.items.generation_student_text.str.contains("I am not sure")
    hits |= demo.items.generation_teacher_text.str.contains("I am not sure")
    assert seen.page.locator("#item-count").inner_text() == f"{hits.sum()} of 300 items"
    seen.page.locator("#filter-text").fill("nowhere to be found")
    assert seen.page.locator(".empty").is_visible()


def test_an_item_shows_both_protocols(visit, demo_page, demo):
    seen = visit(demo_page)
    seen.choose("hidden")
    seen.page.locator(".item summary").first.click()
    task, name = seen.page.locator(".item .where").first.inner_text().split(" ")
    item = next(each for each in demo.paired_items if (each.task, each.item) == (task, name))
    body = seen.page.locator(".item .body").first
    text = body.inner_text()
    assert item.loglikelihood.prompt in text and f"gold: {item.generation.gold}" in text
    assert item.generation.student.replies[0].text in text and item.generation.teacher.replies[0].text in text
    for side in (item.loglikelihood.teacher, item.loglikelihood.student):
        for nats in side.choice_loglikelihoods_nats:
            assert f"{nats:.3f} nats" in text
    gold_row = body.locator(".choices tbody tr").nth(item.loglikelihood.gold_index)
    assert gold_row.get_by_text("gold", exact=True).is_visible()
    assert gold_row.get_by_text("ranked first").count() == 2
    assert item.generation.student.replies[0].finish_reason in text


def test_markup_from_a_run_stays_inert(visit, hostile, tmp_path):
    seen = visit(write(hostile, tmp_path / "report.html"))
    seen.choose("all")
    for summary in seen.page.locator("summary").all():
        if not summary.evaluate("element => element.parentElement.open"):
            summary.click()
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.pwned") is None
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("script").count() == 4
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
    for side in ("teacher", "student"):
        assert demo.provenance[side]["checkpoint"]["digest"] in text


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


def test_thousands_of_items_stay_quick(visit, demo, tmp_path):
    items = tuple(dataclasses.replace(item, item=f"{i}") for i, item in enumerate(demo.paired_items * 20))
    seen = visit(write(dataclasses.replace(demo, paired_items=items), tmp_path / "report.html"))
    seen.choose("all")
    took_ms = seen.page.evaluate(
        """() => {
            const input = document.getElementById("filter-text");
            const start = performance.now();
            input.value = "not sure";
            input.dispatchEvent(new Event("input"));
            return performance.now() - start;
        }"""
    )
    assert len(items) == 6000 and took_ms < 2000
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
