"""The gate's verdicts for machines and for a pull request: JUnit XML, Markdown, JSON.

JUnit: a test case for every row of every student. A regression is a `failure`, what nobody can say an `error`, so that neither is
green; elements and attributes are those that Jenkins' and GitLab's readers share.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perplexity_lies.errors import UsageError
from perplexity_lies.files import write_whole
from perplexity_lies.read.gate import GateRow, Outcome, Verdict
from perplexity_lies.read.wording import interval, signed

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
SIGNS = {Outcome.PASS: "pass", Outcome.REGRESS: "**regress**", Outcome.INCONCLUSIVE: "inconclusive"}


def _plain(text: str) -> str:
    return NOT_XML.sub("?", text)


def _why(row: GateRow) -> str:
    needed = f"about {row.units_needed} units would decide it" if row.units_needed else ""
    return "; ".join(filter(None, [f"{row}, margin −{row.margin_pp:g} pp", row.gap.why, *row.doubts, needed]))


def junit_xml(verdicts: Sequence[Verdict]) -> str:
    """A `testsuites` document: a suite a student, a case a row and one for the verdict itself."""
    root = ElementTree.Element("testsuites", name="plies gate")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for verdict in verdicts:
        cases = [(f"{row.what}: {row.task}", row.outcome, _why(row)) for row in verdict.rows if row.needs_pass]
        cases += [
            (f"{row.what}: {row.task} does not regress", row.outcome, _why(row))
            for row in verdict.rows
            if not row.needs_pass and (row.outcome is not Outcome.INCONCLUSIVE or row.doubts or row.gap.why)
        ]
        cases.append(("verdict", verdict.outcome, str(verdict)))
        counts = {
            "tests": len(cases),
            "failures": sum(outcome is Outcome.REGRESS for _, outcome, _ in cases),
            "errors": sum(outcome is Outcome.INCONCLUSIVE for _, outcome, _ in cases),
        }
        suite = ElementTree.SubElement(root, "testsuite", name=_plain(verdict.student), time="0")
        suite.attrib.update({name: str(count) for name, count in counts.items()})
        for name, outcome, why in cases:
            case = ElementTree.SubElement(
                suite, "testcase", name=_plain(name), classname=_plain(f"plies.gate.{verdict.student}"), time="0"
            )
            if outcome is not Outcome.PASS:
                tag = "failure" if outcome is Outcome.REGRESS else "error"
                ElementTree.SubElement(case, tag, message=_plain(why), type=str(outcome)).text = _plain(why)
        totals = {name: total + counts[name] for name, total in totals.items()}
    root.attrib.update({name: str(total) for name, total in totals.items()})
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """A heading and a table a student; what comes from a run is escaped."""

    def safe(text: str) -> str:
        return " ".join(MARKDOWN.sub(r"\\\1", text).split())

    lines = []
    for verdict in verdicts:
        lines += [f"### plies gate: {safe(verdict.student)}: {verdict.outcome}", ""]
        lines += ["PARTIAL: not the whole suite was asked.", ""] if verdict.partial else []
        lines += [
            safe(verdict.reason),
            "",
            "| what | task | pp | 95 % | margin | outcome |",
            "|---|---|---|---|---|---|",
        ]
        for row in verdict.rows:
            cells = (row.what, row.task, signed(row.gap.value), interval(row.gap), f"−{row.margin_pp:g}")
            lines.append(f"| {' | '.join(safe(cell) for cell in cells)} | {SIGNS[row.outcome]} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def plain_verdicts(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """JSON content: `student`, `outcome`, `exit_code`, `partial`, `reason`, `rows`."""
    return [
        {
            "student": verdict.student, "outcome": str(verdict.outcome), "exit_code": verdict.exit_code,
            "partial": verdict.partial, "reason": verdict.reason,
            "rows": [
                {
                    "task": row.task, "what": row.what, "value_pp": row.gap.value, "low_pp": row.gap.low,
                    "high_pp": row.gap.high, "method": row.gap.method, "n": row.gap.n, "margin_pp": row.margin_pp,
                    "outcome": str(row.outcome), "units_needed": row.units_needed, "doubts": list(row.doubts),
                    "required": "pass" if row.needs_pass else "no regress",
                }
                for row in verdict.rows
            ],
        }
        for verdict in verdicts
    ]  # fmt: skip


def write_verdicts(
    verdicts: Sequence[Verdict], *, junit: Path | None = None, summary: Path | None = None, as_json: Path | None = None
) -> None:
    """Write what is asked for; `summary` is appended to, as GitHub wants it. Raises UsageError where a file cannot be written."""
    try:
        if junit is not None:
            write_whole(junit, junit_xml(verdicts))
        if as_json is not None:
            write_whole(as_json, json.dumps(plain_verdicts(verdicts), indent=1, ensure_ascii=False) + "\n")
        if summary is not None:
            with summary.open("a", encoding="utf-8", errors="replace") as file:
                file.write(markdown(verdicts))
    except OSError as error:
        raise UsageError("the verdict cannot be written", found=str(error), mend="a path of yours") from error
