"""A picture of a report: `python -m reports.screenshot REPORT.html OUT.png [--width 1280] [--dark] [--full]`.

Drives a Chromium that is already installed through playwright's Python package; downloads nothing.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from pathlib import Path

from perplexity_lies.errors import MissingError, PliesError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
)


def find_browser() -> str:
    """Path of an installed Chromium. Raises MissingError."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise MissingError(
        "a picture of a report needs Chromium", found=f"none of {', '.join(BROWSERS)}", mend="apt-get install chromium"
    )


def screenshot(
    report: str | Path,
    picture: str | Path,
    *,
    width_px: int = 1280,
    height_px: int = 900,
    dark: bool = False,
    full: bool = False,
) -> Path:
    """Save what a browser shows of `report` as a PNG; `full` takes the whole page. Raises MissingError."""
    report, picture = Path(report), Path(picture)
    if not report.is_file():
        raise MissingError(f"there is no report at {str(report)!r}", mend="plies report COMPARISON.json")
    browser_path = find_browser()
    try:
        playwright = importlib.import_module("playwright.sync_api")
    except ImportError as error:
        raise MissingError(
            "a picture of a report needs playwright", found=str(error), mend="pip install playwright"
        ) from error
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=list(ARGUMENTS))
        page = browser.new_page(
            viewport={"width": width_px, "height": height_px},
            color_scheme="dark" if dark else "light",
            device_scale_factor=2 if not full else 1,
        )
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("body[data-ready]")
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(picture), full_page=full)
        browser.close()
    return picture


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m reports.screenshot", description="A picture of a report.")
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280, help="pixels")
    parser.add_argument("--height", type=int, default=900, help="pixels")
    parser.add_argument("--dark", action="store_true", help="dark colours")
    parser.add_argument("--full", action="store_true", help="the whole page")
    asked = parser.parse_args(arguments)
    try:
        screenshot(
            asked.report, asked.picture, width_px=asked.width, height_px=asked.height, dark=asked.dark, full=asked.full
        )
    except PliesError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
