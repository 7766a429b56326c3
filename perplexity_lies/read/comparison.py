"""`Comparison`: what two runs say of a teacher and its student, as numbers, items and provenance; and its JSON.

`comparison.json` holds all that a report needs, so that a report can be made again without the runs. Its bytes depend
on the records and manifests only: keys sorted, floats rounded to six decimals, no timings, no absolute paths.

Knows nothing of run directories or of how the numbers were estimated (`compare` and `gap` do).
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from perplexity_lies.errors import UsageError
from perplexity_lies.read.stats.bootstrap import DECIMALS, RULE_OF_THREE, Estimate
from perplexity_lies.record.records import GENERATION, LOGLIKELIHOOD, PROTOCOLS

if TYPE_CHECKING:
    import pandas

FORMAT = 1
SIDES = ("teacher", "student")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One checkpoint under one protocol of one task."""

    score: Estimate
    """Percent, over the paired items."""
    records: int
    """All records of the run, paired or not: what coverage, truncation and statuses are shares of."""
    statuses: dict[str, int]
    coverage: float
    """Share of records in which an answer was found and judged."""
    truncation: float
    """Share of records whose reply hit its token budget; 0 by log-likelihood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRow:
    """Teacher and student under one protocol of one task (or of all tasks that have both protocols)."""

    protocol: str
    metric: str
    source: str
    chance: float | None
    """Score of guessing, in [0, 1], where the suite knows it."""
    teacher: Side
    student: Side
    gap: Estimate
    gained: int
    """Items on which the student scores higher."""
    lost: int
    mcnemar_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task, or the overall row."""

    task: str
    title: str
    subjects: int
    """Clusters among the paired items; 1 where the task has none."""
    loglikelihood: ProtocolRow | None
    generation: ProtocolRow | None
    hidden_gap: Estimate | None
    """Percentage points, over items that have all four scores."""

    def protocol(self, name: str) -> ProtocolRow | None:
        """The row of one protocol."""
        return self.loglikelihood if name == LOGLIKELIHOOD else self.generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """Items that did not enter a number, and why."""

    task: str
    what: str
    """`loglikelihood`, `generation` or `hidden gap`."""
    reason: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Something to know before a number is believed."""

    kind: str
    """`saturated`, `chance`, `coverage`, `truncation`, `few items`, `few clusters`, `settings`, `seeds` ..."""
    task: str
    """Empty where it concerns the whole comparison."""
    text: str


class GuardFailure(NamedTuple):
    """A check of the artifact guard that the engine of one side did not pass."""

    side: str
    check: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One record: what a checkpoint answered under one seed."""

    seed: int
    score: float
    status: str
    answer: str
    text: str = ""
    finish_reason: str = ""
    completion_tokens: int = 0
    fragile: bool = False
    """Whether the engine's own rounding could have changed the answer."""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One checkpoint on one item under one protocol."""

    score: float
    """In [0, 1], mean over seeds."""
    replies: tuple[Reply, ...]
    """By seed."""
    choice_loglikelihoods_nats: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One item as one protocol asked it."""

    prompt: str
    gold: str
    choices: tuple[str, ...] = ()
    gold_index: int = -1
    paired: bool
    """Whether it entered the gap of this protocol."""
    teacher: Cell | None
    student: Cell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedItem:
    """One item that is paired under at least one protocol."""

    task: str
    subject: str
    item: str
    loglikelihood: Asked | None
    generation: Asked | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A teacher and its student under both protocols. Made by `compare.compare_runs`, or read by `load_comparison`."""

    teacher_name: str
    student_name: str
    suite_name: str
    limit: int | None
    """Items per task that were asked for; None when all were."""
    tasks: tuple[TaskRow, ...]
    overall: TaskRow | None
    """Unweighted mean over the tasks that are paired under both protocols; None where there is no such task."""
    paired_items: tuple[PairedItem, ...]
    unpaired: tuple[Unpaired, ...]
    cautions: tuple[Caution, ...]
    provenance: dict[str, Any]
    """`teacher` and `student`: the manifests without timings; `bootstrap`: resamples, confidence, seed."""
    format: int = field(default=FORMAT)

    @property
    def partial(self) -> bool:
        """Whether a limit was set, so that the suite was not asked as a whole."""
        return self.limit is not None

    @property
    def guard_failures(self) -> tuple[GuardFailure, ...]:
        """What the artifact guard found wrong; while there is any, the gaps are not a finding."""
        return guard_failures(self.provenance)

    @property
    def rows(self) -> tuple[TaskRow, ...]:
        """The tasks, then the overall row where there is one."""
        return self.tasks + ((self.overall,) if self.overall else ())

    @property
    def gaps(self) -> pandas.DataFrame:
        """One row per task (then overall) and protocol; scores in percent, gaps in percentage points."""
        import pandas

        return pandas.DataFrame([_gap_line(row, name) for row in self.rows for name in PROTOCOLS if row.protocol(name)])

    @property
    def items(self) -> pandas.DataFrame:
        """One row per paired item, with score, status, answer, reply and log-likelihoods of both checkpoints."""
        import pandas

        return pandas.DataFrame([_item_line(item) for item in self.paired_items])

    def headline(self) -> str:
        """What log-likelihood does or does not hide, in plain sentences that say no more than the interval does."""
        if self.guard_failures:
            named = "; ".join(f"{failure.side}: {failure.check}" for failure in self.guard_failures)
            return f"The guard failed, so these numbers are not a finding ({named})."
        row = self.overall
        if row is None or row.loglikelihood is None or row.generation is None or row.hidden_gap is None:
            return "No task has items paired under both protocols, so there is no hidden gap to report."
        first = (
            f"By log-likelihood the student is {_standing(row.loglikelihood.gap.value, 'its teacher')}; "
            f"asked to generate, it is {_standing(row.generation.gap.value)}."
        )
        return f"{first} {_hidden_sentence(row.hidden_gap, row.loglikelihood.gap.value)}"

    def to_json(self) -> bytes:
        """Canonical bytes: equal comparisons give equal bytes."""
        plain = rounded(dataclasses.asdict(self))
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
        return (text + "\n").encode("utf-8", "surrogatepass")

    def write(self, path: str | Path) -> Path:
        """Write `to_json` to `path`, making its directory."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.to_json())
        return path

    def _repr_html_(self) -> str:
        """The headline and the gaps, for notebooks. Everything from a run is escaped."""
        head = "".join(
            f"<th>{name}</th>" for name in ("task", "n", "log-likelihood gap", "generation gap", "hidden gap")
        )
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _brief(row))}</tr>" for row in self.rows
        )
        partial = f"<p>Partial: at most {self.limit} items per task.</p>" if self.partial else ""
        title = f"<p><b>{html.escape(self.student_name)}</b> against <b>{html.escape(self.teacher_name)}</b></p>"
        return f"{title}<p>{html.escape(self.headline())}</p>{partial}<table><tr>{head}</tr>{body}</table>"


def signed(value: float) -> str:
    """A gap to one decimal with its sign, and a true minus: `−2.4`, `+0.3`, `0.0`."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(found: Estimate, *, sign: bool = True) -> str:
    """`[−3.1, −1.7]`; `no interval` where there is none."""
    if found.low is None or found.high is None:
        return "no interval"
    low, high = (signed(bound) if sign else f"{bound:.1f}" for bound in (found.low, found.high))
    return f"[{low}, {high}]"


def guard_failures(provenance: dict[str, Any]) -> tuple[GuardFailure, ...]:
    """The checks that failed, of both sides' manifests; a manifest without a guard has none."""
    return tuple(
        GuardFailure(side, name, check["detail"])
        for side in SIDES
        for name, check in sorted(provenance.get(side, {}).get("guard", {}).items())
        if check["passed"] is False
    )


def _standing(gap_pp: float, whom: str = "") -> str:
    size = f"{abs(gap_pp):.1f}"
    if size == "0.0":
        return "level with its teacher"
    return f"{size} pp {'behind' if gap_pp < 0 else 'ahead of' if whom else 'ahead'} {whom}".rstrip()


def _hidden_sentence(found: Estimate, loglikelihood_gap_pp: float) -> str:
    if found.low is None or found.high is None:
        return f"The difference, {signed(found.value)} pp, rests on too few items for an interval."
    if found.method == RULE_OF_THREE and found.value == 0:
        return (
            f"The two gaps agree on all {found.n} items; a hidden gap of up to {found.high:.1f} pp cannot be excluded."
        )
    bounds = interval(found)
    size, rest = f"{abs(found.value):.1f} pp", f"the hidden gap is {signed(found.value)} pp, 95 % interval {bounds}."
    if found.high < 0 and loglikelihood_gap_pp <= 0:
        return f"Log-likelihood hides {size} of the loss: {rest}"
    if found.high < 0:
        return f"Log-likelihood flatters the student by {size}: {rest}"
    if found.low > 0:
        return f"Log-likelihood understates the student by {size}: {rest}"
    return f"The difference, {signed(found.value)} pp, is not distinguishable from zero: 95 % interval {bounds}."


def _brief(row: TaskRow) -> list[str]:
    gaps = [row.loglikelihood and row.loglikelihood.gap, row.generation and row.generation.gap, row.hidden_gap]
    counts = {found.n for found in gaps if found}
    return [
        row.title or row.task,
        "/".join(str(n) for n in sorted(counts)),
        *(f"{signed(found.value)} {interval(found)}" if found else "not asked" for found in gaps),
    ]


def _estimate_columns(prefix: str, found: Estimate | None) -> dict[str, Any]:
    return {
        prefix: found.value if found else None,
        f"{prefix}_low": found.low if found else None,
        f"{prefix}_high": found.high if found else None,
    }


def _gap_line(row: TaskRow, protocol: str) -> dict[str, Any]:
    found = row.protocol(protocol)
    assert found is not None
    line: dict[str, Any] = {"task": row.task, "protocol": protocol, "metric": found.metric, "n": found.gap.n}
    for name in SIDES:
        line |= _estimate_columns(name, getattr(found, name).score)
    line |= _estimate_columns("gap_pp", found.gap)
    line |= {"method": found.gap.method, "gained": found.gained, "lost": found.lost, "mcnemar_p": found.mcnemar_p}
    for name in SIDES:
        side: Side = getattr(found, name)
        line |= {f"{name}_coverage": side.coverage, f"{name}_truncation": side.truncation}
    line |= {"chance": found.chance, **_estimate_columns("hidden_gap_pp", row.hidden_gap)}
    return line | {"hidden_gap_n": row.hidden_gap.n if row.hidden_gap else 0}


def _item_line(item: PairedItem) -> dict[str, Any]:
    line: dict[str, Any] = {"task": item.task, "subject": item.subject, "item": item.item}
    for protocol, asked in ((LOGLIKELIHOOD, item.loglikelihood), (GENERATION, item.generation)):
        line |= {
            f"{protocol}_paired": bool(asked and asked.paired),
            f"{protocol}_prompt": asked.prompt if asked else None,
        }
        line[f"{protocol}_gold"] = asked.gold if asked else None
        if protocol == LOGLIKELIHOOD:
            line["choices"] = asked.choices if asked else ()
        for side in SIDES:
            cell: Cell | None = getattr(asked, side) if asked else None
            reply = cell.replies[0] if cell else None
            line[f"{protocol}_{side}_score"] = cell.score if cell else None
            line[f"{protocol}_{side}_status"] = reply.status if reply else None
            line[f"{protocol}_{side}_answer"] = reply.answer if reply else None
            if protocol == LOGLIKELIHOOD:
                line[f"{protocol}_{side}_nats"] = cell.choice_loglikelihoods_nats if cell else ()
            else:
                line[f"{protocol}_{side}_text"] = reply.text if reply else None
    return line


def rounded(value: Any) -> Any:
    """JSON content with every float at `DECIMALS`."""
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0  # + 0.0 makes -0.0 and 0.0 one
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, raw: Any, where: str) -> Any:
    """`raw` JSON as `kind`: a dataclass, tuple[X, ...], dict, X | None or a plain type. ValueError names `where`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if raw is None else _decode(next(arm for arm in inner if arm is not type(None)), raw, where)
    if origin is tuple and isinstance(raw, list):
        return tuple(_decode(inner[0], value, f"{where}[{i}]") for i, value in enumerate(raw))
    if origin is dict and isinstance(raw, dict):
        return {key: _decode(inner[1], value, f"{where}.{key}") for key, value in raw.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(raw, dict):
        return _decode_dataclass(kind, raw, where)
    if kind is Any or (kind is float and type(raw) is int):
        return raw
    if origin is None and type(raw) is kind:
        return raw
    raise ValueError(f"{where} should be {getattr(kind, '__name__', kind)}, found {json.dumps(raw)[:60]}")


def _decode_dataclass(kind: Any, raw: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    unknown, lacking = sorted(set(raw) - set(hints)), sorted(set(hints) - set(raw))
    if unknown or lacking:
        raise ValueError(f"{where} has unknown keys {unknown} and lacks {lacking}")
    return kind(**{name: _decode(hint, raw[name], f"{where}.{name}") for name, hint in hints.items()})


def load_comparison(path: str | Path) -> Comparison:
    """Read a `comparison.json`. Raises UsageError where it cannot be used, saying what is wrong with it."""
    asked = f"cannot use {str(path)!r} as a comparison"
    mend = "plies compare TEACHER STUDENT (it writes comparison.json)"
    try:
        raw = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(asked, found=str(error), mend=mend) from error
    except ValueError as error:
        raise UsageError(asked, found=f"not JSON: {error}", mend=mend) from error
    if not isinstance(raw, dict) or "format" not in raw:
        raise UsageError(asked, found="JSON, but not a comparison (no 'format')", mend=mend)
    if raw["format"] != FORMAT:
        found = f"format {raw['format']!r}; this version of plies reads format {FORMAT}"
        raise UsageError(asked, found=found, mend="compare the two runs again with this version")
    try:
        comparison: Comparison = _decode_dataclass(Comparison, raw, "comparison")
    except ValueError as error:
        raise UsageError(asked, found=str(error), mend=mend) from error
    return comparison
