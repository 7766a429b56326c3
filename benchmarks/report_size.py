"""How long, how large and how heavy a report is, by number of records: what `plies report RUN RUN` does.

    python benchmarks/report_size.py

Makes run directories of word-like text (two sides, two rungs, five tasks) and reports each in a process of its own:
seconds, peak memory, size of `comparison.json` and of the page, and time in a headless Chromium until items are shown.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _provenance import provenance

from perplexity_lies.digests import sha256_text
from perplexity_lies.files import write_whole
from perplexity_lies.record.manifest import CheckpointFacts, Manifest, RungFacts, SuiteFacts, TaskFacts
from perplexity_lies.record.records import ItemRecord, Reading, Status, dump_records
from perplexity_lies.rungs import GENERATION, LOGLIKELIHOOD

SIZES = (1_000, 10_000, 100_000)
"""Records of about 2 KB, both sides and rungs together."""
LONG_RECORDS, LONG_CHARACTERS = 6_500, 65_000
TASKS, SIDES, RUNGS = 5, 2, (LOGLIKELIHOOD, GENERATION)
ROUNDS = 3
"""The quickest counts: what else the machine does only slows."""
BARS = {"seconds": 10.0, "peak_rss_mb": 1_000.0, "comparison_mb": 30.0, "page_mb": 20.0, "first_items_s": 3.0}
"""Most that the largest set of short records may take; Python's imports are in the seconds."""
GROWTH_BAR = 1.1
"""Most that the fitted exponent of seconds over records may be."""


class Words:
    """Text with the frequencies of words of a language (Zipf), so that it compresses like one."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        spell = random.Random(0)
        parts = [c + v for c in "bcdfghjklmnprstvw" for v in ("a", "e", "i", "o", "u", "ai", "en", "or")]
        self.words = ["".join(spell.choices(parts, k=spell.randint(1, 4))) for _ in range(8_000)]
        self.weights = [0.0]
        for rank in range(1, len(self.words) + 1):
            self.weights.append(self.weights[-1] + 1 / rank)
        del self.weights[0]

    def text(self, characters: int) -> str:
        """Words up to a number of characters, sentences of twelve."""
        words = self.rng.choices(self.words, cum_weights=self.weights, k=characters // 4 + 1)
        words[11::12] = [f"{word}." for word in words[11::12]]
        return " ".join(words)[:characters]


def _records(task: str, rung: str, side: int, items: int, characters: int) -> Iterator[ItemRecord]:
    """One file's records; both sides share their prompts, and the student loses more where it must reply."""
    asked, said = Words(sum(map(ord, task + rung))), Words(side + len(rung))
    for i in range(items):
        choices = tuple(asked.text(24) for _ in range(4)) if rung == LOGLIKELIHOOD else ()
        prompt = asked.text(characters if choices else characters // 2)
        right = said.rng.random() < (0.9, 0.85 if choices else 0.6)[side]
        reading = Reading(
            extractor="handmade@1", status=Status.SCORED, score=float(right), metric="acc", rule="last match",
            answer=choices[0 if right else 1] if choices else said.text(12),
        )  # fmt: skip
        yield ItemRecord(
            task=task, item=f"{i:06}", rung=rung, prompt=prompt, prompt_sha256=sha256_text(prompt),
            gold=choices[0] if choices else "gold", choices=choices, gold_index=0 if choices else -1,
            readings=(reading,), choice_loglikelihoods_nats=tuple(-said.rng.uniform(1, 20) for _ in choices),
            text="" if choices else said.text(characters // 2), finish_reason="" if choices else "stop",
            prompt_tokens=characters // 4, completion_tokens=0 if choices else characters // 8,
        )  # fmt: skip


def make_runs(folder: Path, records: int, characters: int) -> list[Path]:
    """One run directory a side, with `records` records in all."""
    items = records // (TASKS * SIDES * len(RUNGS))
    facts = {LOGLIKELIHOOD: RungFacts(metric="acc", chance=0.25), GENERATION: RungFacts(metric="acc")}
    runs = []
    for side, name in enumerate(("teacher", "student")):
        checkpoint = CheckpointFacts(
            name=name, kind="local", digest=f"sha256:{sha256_text(name)}", weights_digest=sha256_text(name),
            tokenizer_digest="t", config_digest="c",
        )  # fmt: skip
        manifest = Manifest(
            complete=True, rungs=RUNGS, checkpoint=checkpoint, suite=SuiteFacts(name="synthetic", digest="sha256:0"),
            settings={"dtype": "float32"}, tasks=tuple(TaskFacts(name=f"task{t}", rungs=facts) for t in range(TASKS)),
        )  # fmt: skip
        write_whole(folder / name / "manifest.json", manifest.to_json())
        for task in manifest.tasks:
            for rung in RUNGS:
                lines = dump_records(_records(task.name, rung, side, items, characters))
                write_whole(folder / name / "records" / f"{task.name}.{rung}.jsonl", lines)
        runs.append(folder / name)
    return runs


def report(runs: list[str], out: Path) -> dict[str, float]:
    """Compare and write as `plies report` does; seconds of each part, and the peak memory of this process."""
    started = time.perf_counter()
    from perplexity_lies.read.compare import compare_runs
    from reports import html

    marks = {"imports_s": time.perf_counter()}
    comparison = compare_runs(*runs)
    marks["compare_s"] = time.perf_counter()
    comparison.write(out / "comparison.json")
    marks["comparison_json_s"] = time.perf_counter()
    html.write(comparison, out / "report.html")
    marks["page_s"] = time.perf_counter()
    found, last = {}, started
    for name, mark in marks.items():
        found[name], last = round(mark - last, 2), mark
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = round(used.ru_utime + used.ru_stime, 2)
    return {"seconds": round(last - started, 2), **found, "cpu_s": cpu_s, "peak_rss_mb": round(used.ru_maxrss / 1e3)}


FIRST_ITEM = """
new MutationObserver(() => {
  const asked = document.querySelector(".item .asked");
  if (!asked?.textContent || window.firstItem) return;
  window.firstItem = true;
  requestAnimationFrame(() => setTimeout(() => (document.body.dataset.firstItemMs = performance.now())));
}).observe(document, { childList: true, subtree: true });
"""
"""Notes when the first item was painted with its text, in milliseconds from the start of the navigation."""


def seconds_to_items(page: Path) -> float:
    """From the address to the first items with their texts, in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    from reports.screenshot import ARGUMENTS, find_browser

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=list(ARGUMENTS))
        tab = browser.new_page()
        tab.add_init_script(FIRST_ITEM)
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-first-item-ms][data-ready]")
        milliseconds = float(tab.locator("body").get_attribute("data-first-item-ms") or "nan")
        browser.close()
    return round(milliseconds / 1e3, 2)


def measure(records: int, characters: int) -> dict[str, Any]:
    """Make the runs, report them in a child process, open the page."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        runs = make_runs(out, records, characters)
        on_disk = sum(path.stat().st_size for path in out.rglob("*.jsonl"))
        command = [sys.executable, __file__, "--child", *map(str, runs), str(out)]
        rounds = [json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(ROUNDS)]
        found = min(rounds, key=lambda each: each["seconds"])
        sizes = {
            f"{name}_mb": round((out / file).stat().st_size / 1e6, 2)
            for name, file in (("comparison", "comparison.json"), ("page", "report.html"))
        }
        return {
            "records": records, "characters": characters, "records_mb": round(on_disk / 1e6, 1), **found, **sizes,
            "first_items_s": seconds_to_items(out / "report.html"),
        }  # fmt: skip


def growth(rows: list[dict[str, Any]], key: str) -> float:
    """Exponent e of `key` ~ records^e, by least squares in log-log. Parts of fixed cost (imports, plotly) lower it."""
    points = [(math.log(row["records"]), math.log(row[key])) for row in rows]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return round(sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points), 2)


def main() -> int:
    """Measure, print, write; 1 where a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/report_size.json"))
    parser.add_argument("--child", nargs=3, metavar=("RUN", "RUN", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(report(asked.child[:2], Path(asked.child[2]))))
        return 0
    rows = []
    for records, characters in [*((size, 1_450) for size in SIZES), (LONG_RECORDS, LONG_CHARACTERS)]:
        rows.append(measure(records, characters))
        print(rows[-1], flush=True)
    short = rows[:-1]
    missed = [name for name, bar in BARS.items() if short[-1][name] > bar]
    exponents = {key: growth(short, key) for key in ("seconds", "compare_s", "page_s", "comparison_mb", "peak_rss_mb")}
    missed += [f"growth of {key}" for key, exponent in exponents.items() if exponent > GROWTH_BAR]
    content = {"rows": rows, "bars": BARS, "growth_exponent": exponents, "missed": missed, **provenance()}
    content["versions"] |= {name: version(name) for name in ("pydantic", "numpy", "plotly", "playwright")}
    asked.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"growth {exponents}; " + (f"missed: {', '.join(missed)}" if missed else "every bar met"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
