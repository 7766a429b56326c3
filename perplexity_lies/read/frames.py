"""A comparison as data frames: gaps, items, replies. pandas is imported when a frame is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from perplexity_lies.read.numbers import ABSENT, SHORT, STATUS_CODES, Side, SideScore, TaskItems, TaskRow
from perplexity_lies.read.pairing import read_of
from perplexity_lies.read.stats.estimate import Estimate, detectable
from perplexity_lies.read.texts import records_of
from perplexity_lies.rungs import CONTRASTS, RUNGS

if TYPE_CHECKING:
    import pandas

FLIPS = ("gained", "lost", "mcnemar_p", "holm_p", "benjamini_hochberg_p")
STATUS_NAMES = {letter: str(status) for status, letter in STATUS_CODES.items()} | {SHORT: "scored", ABSENT: None}


def pandas_frame(lines: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """The lines as a frame."""
    import pandas

    return pandas.DataFrame(list(lines))


def _columns(prefix: str, found: Estimate | None) -> dict[str, Any]:
    return {
        prefix: found.value if found else None,
        f"{prefix}_low": found.low if found else None,
        f"{prefix}_high": found.high if found else None,
    }


def gap_lines(rows: Sequence[TaskRow], students: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """One line per task (then overall), rung and student."""
    for row in rows:
        for rung, found in row.rungs.items():
            for i, student in enumerate(students, 1):
                sides: dict[str, SideScore] = {"teacher": found.sides[0], "student": found.sides[i]}
                line: dict[str, Any] = {"task": row.task, "rung": rung, "name": student.name, "metric": found.metric}
                line["n"] = found.n
                for name, side in sides.items():
                    line |= _columns(name, side.score)
                gap = sides["student"].gap
                line |= _columns("gap_pp", gap) | {"method": gap.method if gap else None}
                line |= _columns("retention", sides["student"].retention)
                line |= {name: getattr(sides["student"], name) for name in FLIPS}
                line["detectable_pp"] = detectable(gap) if gap else None
                for name, side in sides.items():
                    line |= {f"{name}_coverage": side.coverage, f"{name}_truncation": side.truncation}
                line["chance"] = found.chance
                for contrast in CONTRASTS:
                    estimate = row.contrast(contrast.name, i)
                    column = contrast.name.replace(" ", "_")
                    line |= _columns(f"{column}_pp", estimate)
                    line |= {f"{column}_n": estimate.n if estimate else 0}
                    line |= {f"{column}_method": estimate.method if estimate else None}
                yield line


def item_lines(items_of: Sequence[TaskItems], sides: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """One line per item: `<rung>_paired`, then `<rung>_<side>_score` and `_status`."""
    rungs = [rung for rung in RUNGS if any(rung in task.rungs for task in items_of)]
    for task in items_of:
        for i, item in enumerate(task.items):
            line: dict[str, Any] = {
                "task": task.task,
                "subject": task.subjects[i] if task.subjects else "",
                "item": item,
            }
            for rung in rungs:
                found = task.rungs.get(rung)
                line[f"{rung}_paired"] = bool(found) and found.paired[i] == "1" if found else False
                for j, side in enumerate(sides):
                    name = f"{rung}_{side.label.replace(' ', '_')}"
                    line[f"{name}_score"] = found.scores[j][i] if found else None
                    line[f"{name}_status"] = STATUS_NAMES[found.statuses[j][i]] if found else None
            yield line


def reply_lines(sides: Sequence[Side]) -> Iterator[dict[str, Any]]:
    """One line per record; `fallback`: a fallback rule read its answer.

    Raises MissingError where a run directory is gone or has changed.
    """
    for side, record in records_of(sides):
        reading = record.headline
        yield {
            "side": side.label, "name": side.name, "task": record.task, "subject": record.subject, "item": record.item,
            "rung": record.rung, "seed": record.seed, "score": reading.score, "status": str(reading.status),
            "answer": reading.answer, "rule": reading.rule, "extractor": reading.extractor,
            "fallback": read_of(reading).by_fallback, "gold": record.gold,
            "prompt": record.prompt, "text": record.text, "choices": record.choices,
            "choice_loglikelihoods_nats": record.choice_loglikelihoods_nats, "finish_reason": record.finish_reason,
            "completion_tokens": record.completion_tokens, "fragile": record.fragile, "error": record.error,
        }  # fmt: skip
