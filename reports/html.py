"""A comparison as one HTML file that opens from disk with no network: figures, table, items, provenance.

Everything that came from a run is text to this page: jinja escapes it, the items travel as JSON with `<`, `>` and `&`
escaped and are shown through `textContent` only, and a content security policy names the hashes of our own scripts, so
that no other script runs and nothing is fetched. Knows nothing of how the numbers were made.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from perplexity_lies.read.comparison import Comparison, TaskRow, interval, rounded, signed
from perplexity_lies.read.stats.bootstrap import RULE_OF_THREE, Estimate
from reports import figures

TEMPLATES = Path(__file__).parent / "templates"
ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def embedded_json(content: Any) -> str:
    """JSON that can stand inside a `<script>` element: no `<`, `>`, `&` or line separators that end one."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def _script_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8", "surrogatepass")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share in (0, 1) else f"{100 * share:.1f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A manifest's section as lines: nested keys joined by dots."""
    if isinstance(content, dict):
        return [line for key in sorted(content) for line in _flat(content[key], f"{prefix}.{key}" if prefix else key)]
    if isinstance(content, list) and any(isinstance(inner, (dict, list)) for inner in content):
        return [line for i, inner in enumerate(content) for line in _flat(inner, f"{prefix}[{i}]")]
    return [(prefix, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))]


def _provenance(comparison: Comparison) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Section by section, what each side's manifest says: (key, teacher, student)."""
    teacher, student = comparison.provenance["teacher"], comparison.provenance["student"]
    sections = []
    for section in ("checkpoint", "suite", "settings", "guard", "versions", "tasks"):
        one, other = dict(_flat(teacher.get(section, {}))), dict(_flat(student.get(section, {})))
        keys = list(dict.fromkeys([*one, *other]))
        sections.append((section, [(key, one.get(key, "–"), other.get(key, "–")) for key in keys]))
    return sections


def _shown(row: TaskRow) -> list[Estimate]:
    """The gaps of a row, as the table shows them."""
    by_protocol = [found.gap for found in (row.loglikelihood, row.generation) if found]
    return by_protocol + ([row.hidden_gap] if row.hidden_gap else [])


def render(comparison: Comparison) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "interval": interval,
        "bounds": partial(interval, sign=False),
        "percent": _percent,
        "p_value": _p_value,
    }
    plotly_js = plotly.offline.get_plotlyjs()
    page_js = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    charts = {"scores": figures.scores(comparison), "gaps": figures.gaps(comparison)}
    bounded = any(found.method == RULE_OF_THREE for row in comparison.rows for found in _shown(row))
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        plotly_js=plotly_js,
        page_js=page_js,
        script_hashes=" ".join(map(_script_hash, (plotly_js, page_js))),
        figures_json=embedded_json({name: json.loads(chart.to_json()) for name, chart in charts.items()}),
        items_json=embedded_json([rounded(dataclasses.asdict(item)) for item in comparison.paired_items]),
        provenance=_provenance(comparison),
        rule_of_three=RULE_OF_THREE,
        bounded=bounded,
    )


def write(comparison: Comparison, path: str | Path) -> Path:
    """Write the page to `path`, making its directory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(comparison), encoding="utf-8", errors="replace")
    return path
