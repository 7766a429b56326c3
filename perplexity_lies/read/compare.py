"""Two run directories -> `Comparison`: one path, read top to bottom.

Refuses what cannot be compared, pairs the records (`pairing`), estimates the rows (`gap`), adds `cautions`.

Knows nothing of engines, of libraries, or of how a comparison is shown.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from perplexity_lies.errors import UsageError
from perplexity_lies.read.cautions import caution
from perplexity_lies.read.comparison import (
    SIDES,
    Asked,
    Cell,
    Comparison,
    PairedItem,
    ProtocolRow,
    Reply,
    Side,
    TaskRow,
    Unpaired,
    load_comparison,
)
from perplexity_lies.read.pairing import HIDDEN, Paired, Sides, four_cells, group, left_of_hidden, pair
from perplexity_lies.read.stats.bootstrap import (
    CONFIDENCE,
    GAP,
    HIDDEN_GAP,
    RESAMPLES,
    Stratum,
    estimate,
    flips,
    mcnemar_p,
    resample,
)
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD, PROTOCOLS, ItemRecord, Status
from perplexity_lies.record.store import Run, open_run

__all__ = ["Comparison", "compare_runs", "load_comparison"]

OVERALL = "overall"
ONLY = {"teacher": (1.0, 0.0), "student": (0.0, 1.0)}
"""Contrasts over columns (teacher, student)."""
ABSOLUTE_PATH = re.compile(r"~?/[^/\s]+/|[A-Za-z]:[\\/]")

# --- what may be compared -------------------------------------------------------------------------------------------


def _limit(run: Run) -> str:
    limit = run.manifest["suite"].get("limit")
    return "" if limit is None else f" --limit {limit}"


def _refuse_incomplete(run: Run) -> None:
    if run.manifest.get("complete"):
        return
    checkpoint, suite = run.manifest["checkpoint"]["name"], run.manifest["suite"]["name"]
    again = f"plies evaluate {checkpoint} --suite {suite}{_limit(run)} --out {run.path.parent.parent}"
    raise UsageError(
        f"the run {str(run.path)!r} is not complete",
        found="its manifest says that items are still to be asked",
        mend=f"{again}   (with the --data, --engine and --dtype it had, it continues where it stopped)",
    )


def _refuse_different(teacher: Run, student: Run) -> None:
    """Suite, limit and dtype must agree: otherwise a difference is not the checkpoints' own. A server's dtype is unknown."""
    for asked, section, key in (
        ("suites", "suite", "digest"),
        ("limits", "suite", "limit"),
        ("dtypes", "settings", "dtype"),
    ):
        one, other = (run.manifest[section].get(key) for run in (teacher, student))
        if one == other or (key == "dtype" and "unknown" in (one, other)):
            continue
        suite = teacher.manifest["suite"]["name"]
        flags = {
            "suites": f"--suite {suite}",
            "limits": f"--suite {suite}{_limit(teacher)}",
            "dtypes": f"--suite {suite} --dtype {one}",
        }
        raise UsageError(
            f"the two runs cannot be compared: their {asked} differ",
            found=(f"{key} {one!r} in {teacher.path}", f"{key} {other!r} in {student.path}"),
            mend=f"plies evaluate {student.manifest['checkpoint']['name']} {flags[asked]}   (as the teacher was run)",
        )


# --- rows -----------------------------------------------------------------------------------------------------------


def _stratum(task: str, paired: Paired, bootstrap: tuple[int, int]) -> Stratum:
    """Resample with a seed of the task's own, so that adding a task moves no other task's interval."""
    seed, resamples = bootstrap
    own = int.from_bytes(hashlib.sha256(task.encode("utf-8", "surrogatepass")).digest()[:4], "big")
    return resample(paired.scores, paired.subjects, seed=(seed, own), resamples=resamples)


def _protocol_row(
    protocol: str, spec: dict[str, Any], strata: Sequence[Stratum], records: dict[str, list[ItemRecord]]
) -> ProtocolRow:
    """The row of one protocol over one or more tasks; `records` holds all records of each side."""

    def side(name: str) -> Side:
        found = records[name]
        statuses = Counter(str(record.status) for record in found)
        truncated = sum(record.finish_reason == "length" for record in found)
        return Side(
            score=estimate(strata, ONLY[name]),
            records=len(found),
            statuses=dict(sorted(statuses.items())),
            coverage=statuses[Status.SCORED] / len(found),
            truncation=truncated / len(found),
        )

    scores = np.vstack([stratum.cells for stratum in strata])
    gained, lost = flips(scores[:, 0], scores[:, 1])
    metrics = sorted({record.metric for found in records.values() for record in found})
    return ProtocolRow(
        protocol=protocol,
        metric=spec.get("metric") or ", ".join(metrics),
        source=spec.get("source") or "",
        chance=spec.get("chance"),
        teacher=side("teacher"),
        student=side("student"),
        gap=estimate(strata, GAP),
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_p(gained, lost),
    )


def _all_records(task: str, protocol: str, sides: Sides) -> dict[str, list[ItemRecord]]:
    return {
        side: [record for found in sides[side].get((task, protocol), {}).values() for record in found] for side in SIDES
    }


def _overall(rows: Sequence[TaskRow], strata: Sequence[dict[str, Stratum]], sides: Sides) -> TaskRow | None:
    """Unweighted mean over `rows`, the tasks that are paired under both protocols."""
    if not rows:
        return None
    found: dict[str, ProtocolRow] = {}
    for protocol in PROTOCOLS:
        records: dict[str, list[ItemRecord]] = {side: [] for side in SIDES}
        for row in rows:
            for side, more in _all_records(row.task, protocol, sides).items():
                records[side] += more
        chances = [part.chance for row in rows if (part := row.protocol(protocol)) and part.chance is not None]
        spec = {"chance": fmean(chances) if len(chances) == len(rows) else None}
        found[protocol] = _protocol_row(protocol, spec, [each[protocol] for each in strata], records)
    return TaskRow(
        task=OVERALL,
        title=f"Mean of {len(rows)} tasks" if len(rows) > 1 else "One task",
        subjects=sum(row.subjects for row in rows),
        loglikelihood=found[LOGLIKELIHOOD],
        generation=found[GENERATION],
        hidden_gap=estimate([each[HIDDEN] for each in strata], HIDDEN_GAP),
    )


def _task_row(
    spec: dict[str, Any], pairs: dict[str, Paired], sides: Sides, bootstrap: tuple[int, int]
) -> tuple[TaskRow, dict[str, Stratum]]:
    """A task's row, and its strata by protocol and for the hidden gap, where it has pairs for them."""
    task = spec["name"]
    named = {**pairs, HIDDEN: four_cells(pairs)}
    strata = {name: _stratum(task, paired, bootstrap) for name, paired in named.items() if paired.items}
    rows = {
        protocol: _protocol_row(
            protocol, spec.get(protocol) or {}, [strata[protocol]], _all_records(task, protocol, sides)
        )
        for protocol in PROTOCOLS
        if protocol in strata
    }
    row = TaskRow(
        task=task,
        title=spec.get("title") or "",
        subjects=max(len(set(paired.subjects)) for paired in pairs.values()),
        loglikelihood=rows.get(LOGLIKELIHOOD),
        generation=rows.get(GENERATION),
        hidden_gap=estimate([strata[HIDDEN]], HIDDEN_GAP) if HIDDEN in strata else None,
    )
    return row, strata


# --- items ----------------------------------------------------------------------------------------------------------


def _reply(record: ItemRecord) -> Reply:
    return Reply(
        seed=record.seed,
        score=record.score,
        status=str(record.status),
        answer=record.answer,
        text=record.text,
        finish_reason=record.finish_reason,
        completion_tokens=record.completion_tokens,
        fragile=record.fragile,
        error=record.error,
    )


def _cell(records: list[ItemRecord]) -> Cell | None:
    if not records:
        return None
    return Cell(
        score=fmean(record.score for record in records),
        replies=tuple(_reply(record) for record in records),
        choice_loglikelihoods_nats=records[0].choice_loglikelihoods_nats,
    )


def _asked(task: str, protocol: str, item: str, paired: bool, sides: Sides) -> Asked | None:
    teacher, student = (sides[side].get((task, protocol), {}).get(item, []) for side in SIDES)
    if not teacher and not student:
        return None
    first = (teacher or student)[0]
    return Asked(
        prompt=first.prompt,
        gold=first.gold,
        choices=first.choices,
        gold_index=first.gold_index,
        paired=paired,
        teacher=_cell(teacher),
        student=_cell(student),
    )


def _paired_items(task: str, pairs: dict[str, Paired], sides: Sides) -> list[PairedItem]:
    paired = {protocol: set(pairs[protocol].items) for protocol in PROTOCOLS}
    subjects = {
        item: subject for found in pairs.values() for item, subject in zip(found.items, found.subjects, strict=True)
    }
    return [
        PairedItem(
            task=task,
            subject=subjects[item],
            item=item,
            **{protocol: _asked(task, protocol, item, item in paired[protocol], sides) for protocol in PROTOCOLS},
        )
        for item in sorted(subjects)
    ]


# --- provenance -----------------------------------------------------------------------------------------------------


def _without_paths(value: Any) -> Any:
    """Absolute paths cut to their last part: they tell of a machine, not of a measurement."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, str) and ABSOLUTE_PATH.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _provenance(run: Run) -> dict[str, Any]:
    left_out = ("timings", "complete", "fingerprint")
    kept: dict[str, Any] = _without_paths({k: v for k, v in run.manifest.items() if k not in left_out})
    return kept


def _specs(runs: Sequence[Run], sides: Sides) -> list[dict[str, Any]]:
    """The manifests' tasks in their order, then tasks that only records name."""
    specs = {spec["name"]: spec for run in reversed(runs) for spec in reversed(run.manifest.get("tasks", []))}
    named = dict(reversed(specs.items()))
    for task in sorted({task for records in sides.values() for task, _ in records}):
        named.setdefault(task, {"name": task})
    return list(named.values())


def compare_runs(
    teacher_run: str | Path, student_run: str | Path, *, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare the runs of a teacher and of its student on one suite.

    `seed` and `resamples` are the bootstrap's. Raises UsageError where a run is incomplete, or where the two differ in
    suite, limit or dtype, so that a difference between them would not be the checkpoints' own.
    """
    teacher, student = runs = (open_run(Path(teacher_run)), open_run(Path(student_run)))
    for run in runs:
        _refuse_incomplete(run)
    _refuse_different(teacher, student)
    sides = {side: group(run) for side, run in zip(SIDES, runs, strict=True)}

    rows: list[TaskRow] = []
    complete: list[tuple[TaskRow, dict[str, Stratum]]] = []
    unpaired: list[Unpaired] = []
    items: list[PairedItem] = []
    for spec in _specs(runs, sides):
        pairs: dict[str, Paired] = {}
        for protocol in PROTOCOLS:
            pairs[protocol], left = pair(spec["name"], protocol, sides)
            unpaired += left
        unpaired += left_of_hidden(spec["name"], pairs)
        row, strata = _task_row(spec, pairs, sides, (seed, resamples))
        rows.append(row)
        if HIDDEN in strata:
            complete.append((row, strata))
        items += _paired_items(spec["name"], pairs, sides)

    overall = _overall([row for row, _ in complete], [strata for _, strata in complete], sides)
    provenance = {side: _provenance(run) for side, run in zip(SIDES, runs, strict=True)}
    return Comparison(
        teacher_name=provenance["teacher"]["checkpoint"]["name"],
        student_name=provenance["student"]["checkpoint"]["name"],
        suite_name=provenance["teacher"]["suite"]["name"],
        limit=provenance["teacher"]["suite"].get("limit"),
        tasks=tuple(rows),
        overall=overall,
        paired_items=tuple(items),
        unpaired=tuple(unpaired),
        cautions=tuple(caution(rows, overall, items, unpaired, provenance)),
        provenance={**provenance, "bootstrap": {"resamples": resamples, "confidence": CONFIDENCE, "seed": seed}},
    )
