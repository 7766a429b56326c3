"""A comparison as one HTML file that opens from disk with no network.

Everything that came from a run is text to this page: jinja escapes it, items travel as compressed JSON and are shown
through `textContent` only, and a content security policy names the hash of our own scripts, so that no other script runs
and nothing is fetched.

The page is made of `SECTIONS`: a new one is a template `section-NAME.html.j2` and a row.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from perplexity_lies.files import write_whole
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.wording import interval, signed
from perplexity_lies.rungs import CONTRASTS, RUNGS
from perplexity_lies.templates import pages
from reports import figures, items, ladder, naming, provenance

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 19_000_000
"""Most that a page weighs; texts that do not fit are left out of it, and the page says so."""
OTHER_BYTES = 500_000
"""Room for what is neither plotly nor items."""
ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@dataclass(frozen=True, slots=True)
class Page:
    """What a section may want to know beside the comparison."""

    folder: Path | None
    """Where the page will lie."""
    room_bytes: int
    """For items."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page: `templates/section-NAME.html.j2`."""

    name: str
    context: Callable[[Comparison, Page], dict[str, Any]] = lambda comparison, page: {}
    """What its template is filled with, beside `comparison`."""
    scripts: tuple[str, ...] = ()
    """Its scripts in `templates/`, run in this order after the page is there."""


def embedded_json(content: Any) -> str:
    """JSON that can stand inside a `<script>` element: no `<`, `>`, `&` or line separators that end one."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def _figures(comparison: Comparison, page: Page) -> dict[str, Any]:
    charts = {"scores": figures.scores(comparison), "gaps": figures.gaps(comparison)}
    return {"figures_json": embedded_json({name: json.loads(chart.to_json()) for name, chart in charts.items()})}


def _readings(comparison: Comparison, page: Page) -> dict[str, Any]:
    """By task and rung: what the headline's extractor read, then what the others did."""
    rows = [(row, found) for row in comparison.tasks for found in row.rungs.values() if found.readings]
    readings = [[(f"{found.extractor} (headline)", found.sides), *found.readings.items()] for _, found in rows]
    return {"reread": [(*row, read) for row, read in zip(rows, readings, strict=True)]}


SECTIONS = (
    Section("figures", _figures, ("charts.js",)),
    Section("numbers"),
    Section("ladder", lambda comparison, page: {"ladders": ladder.told(comparison)}),
    Section("readings", _readings),
    Section(
        "items",
        lambda comparison, page: items.context(comparison, page.folder, page.room_bytes),
        ("table.js", "texts.js", "card.js", "items.js"),
    ),
    Section("provenance", lambda comparison, page: provenance.context(comparison)),
)
"""In the order of the page, below its head (`section-verdict.html.j2`)."""


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share in (0, 1) else f"{100 * share:.1f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _environment() -> jinja2.Environment:
    environment = pages("reports")
    environment.filters |= {
        "signed": signed,
        "interval": interval,
        "bounds": partial(interval, sign=False),
        "percent": _percent,
        "p_value": _p_value,
    }
    environment.globals |= {
        "CONTRASTS": CONTRASTS,
        "RUNGS": RUNGS,
        "absent": naming.absent,
        "one_sided": naming.one_sided,
    }
    return environment


def _script_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8", "surrogatepass")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _script() -> str:
    """The scripts of all sections as one, so that they share names with each other and with nothing else."""
    names = ["page.js", *(name for section in SECTIONS for name in section.scripts), "ready.js"]
    parts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    return "\n".join(['"use strict";', "(async () => {", *parts, "})();"])


def render(comparison: Comparison, folder: Path | None = None, page_bytes: int = PAGE_BYTES) -> str:
    """The page's text, at most `page_bytes` long; `folder` is where it will lie."""
    environment = _environment()
    plotly_js, page_js = plotly.offline.get_plotlyjs(), _script()
    page = Page(folder, page_bytes - len(plotly_js) - OTHER_BYTES)
    shared = {
        "comparison": comparison,
        "rungs": naming.rungs_of(comparison),
        "letters": naming.letters(comparison),
        "methods": naming.methods_said(comparison),
        "bounded": any(found.bounded for row in comparison.rows for found in naming.estimates(row)),
    }
    sections = [
        environment.get_template(f"section-{section.name}.html.j2").render(
            **shared, **section.context(comparison, page)
        )
        for section in SECTIONS
    ]
    return environment.get_template("page.html.j2").render(
        **shared,
        sections=sections,
        kinds=[*RUNGS.values(), *CONTRASTS],
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        plotly_js=plotly_js,
        page_js=page_js,
        script_hashes=" ".join(map(_script_hash, (plotly_js, page_js))),
    )


def write(comparison: Comparison, path: str | Path, *, page_bytes: int = PAGE_BYTES) -> Path:
    """Write the page to `path`, making its directory."""
    path = Path(path)
    return write_whole(path, render(comparison, path.parent, page_bytes))
