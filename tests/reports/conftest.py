"""Fixtures of the reports' tests: comparisons of hand-made runs, a report on disk, a browser."""

import importlib.util
from pathlib import Path

import pytest

from perplexity_lies.errors import MissingError
from perplexity_lies.read.compare import compare_runs
from perplexity_lies.record.records import Reading, Status
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD
from reports.html import write
from reports.screenshot import ARGUMENTS, find_browser

HOSTILE = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>\u2028</pre>"


@pytest.fixture(scope="session")
def handmade():
    """The module `tests/read/handmade.py`."""
    spec = importlib.util.spec_from_file_location("handmade", Path(__file__).parents[1] / "read" / "handmade.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def demo(handmade, tmp_path_factory):
    """Five tasks of 60 items, with a limit."""
    return compare_runs(*handmade.demo_pair(tmp_path_factory.mktemp("demo"), items=60, limit=60))


@pytest.fixture(scope="session")
def demo_page(demo, tmp_path_factory):
    """The demo's report."""
    return write(demo, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def trio(handmade, tmp_path_factory):
    """A teacher and three students; `sums` was only generated, `facts` only ranked, `both` read by a second extractor."""
    folder = tmp_path_factory.mktemp("trio")
    runs = []
    for side, name in enumerate(("teacher", "org/first", "second", "third")):
        records = []
        for i in range(20):
            right = float(i >= 4 * side)
            item, said = f"{i:02}", {"text": f"{name} says {i}", "answer": f"a{i}"}
            other = [
                Reading(extractor="other@1", status=Status.SCORED, score=float(i >= side), metric="acc", answer="b")
            ]
            records += [
                handmade.record("both", item, LOGLIKELIHOOD, float(i >= side), choices=("long choice", "no"), gold_index=0,
                                choice_loglikelihoods_nats=(-8.0, -3.0), answer="long choice", metric="acc_norm"),
                handmade.record("both", item, GENERATION, right, readings=other, fragile=i == 0, **said),
                handmade.record("sums", item, GENERATION, right, **said),
                handmade.record("facts", item, LOGLIKELIHOOD, right),
            ]  # fmt: skip
        runs.append(handmade.write_run(folder / f"run{side}", records, name=name))
    return compare_runs(*runs)


@pytest.fixture(scope="session")
def hostile(handmade, tmp_path_factory):
    """Two items of one task: everything that a run can say is markup."""
    folder = tmp_path_factory.mktemp("hostile")
    runs = []
    for side, name in enumerate(("teacher", "student")):
        records = []
        other = [
            Reading(extractor=HOSTILE, status=Status.SCORED, score=1.0, metric="acc", answer=HOSTILE, rule=HOSTILE)
        ]
        for item in ("0", HOSTILE):
            choices = (f"{HOSTILE} choice", "other")
            records.append(
                handmade.record(HOSTILE, item, LOGLIKELIHOOD, 1.0, prompt=f"{HOSTILE} prompt", gold=choices[0],
                                choices=choices, gold_index=0, answer=choices[0], subject=HOSTILE,
                                choice_loglikelihoods_nats=(-1.0, -2.0 - side))
            )  # fmt: skip
            records.append(
                handmade.record(HOSTILE, item, GENERATION, 1.0 - side, prompt=f"{HOSTILE} prompt", gold=HOSTILE,
                                text=f"{HOSTILE} reply of the {name}", answer=f"{HOSTILE} answer", error=HOSTILE,
                                status=Status.UNPARSED if side else Status.SCORED, rule=HOSTILE, readings=other)
            )  # fmt: skip
        tasks = [{"name": HOSTILE, "title": HOSTILE, "rungs": {GENERATION: {"metric": HOSTILE, "source": HOSTILE}}}]
        settings = {"prompt": HOSTILE}
        runs.append(
            handmade.write_run(folder / name, records, name=f"{HOSTILE} {name}", tasks=tasks, settings=settings)
        )
    return compare_runs(*runs)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    try:
        path = find_browser()
    except MissingError as error:
        pytest.skip(str(error))
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()
