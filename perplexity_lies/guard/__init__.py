"""The artifact guard: does a gap come from the checkpoint, or from a fault of the engine?

    found = guard(engine)
    found.failed     ->  checks that did not pass; none: gaps measured with this engine can be believed
    found.rounding   ->  how far rounding may move a log-likelihood or a logit on this engine

Log-likelihood comes from forward passes over whole rows; generation runs token by token from states. A fault in one of these
paths only (a dropped mask, a pad that is read, a state not forked, another prompt's prefix, a stale cache, a doubled template)
opens a hidden gap that the checkpoint does not have. Each check asks one question in two ways that must agree. The negative
control, scored as LAMBADA is, compares "greedy by log-likelihood" with greedy generation.

An engine that shows its model (`Engine.shown`) is also compared with plain forward passes of it (`reference.py`).

Tolerances in float32: 1e-4 nats for a continuation, 1e-3 nats for a token from the model's own cache (measured on ten random
families and five trained checkpoints: 2e-5 and 2e-4), and no difference in a sure token of a reply. Below float32: 6 units in
the last place of the checkpoint's largest logits. Measured in the same way: a continuation moves by up to 2.4 units in bfloat16
and 3.4 in float16; from the cache, the median token moves by 0.7 units and the worst by 75 (the router of a mixture of experts
chose another expert).

Faults that show only in a run (rows that enter late, buffers that grow, long replies, stop strings, sampling) are looked for in
`as_a_run.py`, `stops.py` and `sampling.py`, token ids in `question.py`. `typical.py` has bars for the bulk of many numbers, which
see below float32 what one bar for the largest cannot; `coverage.py` says what no check looks at.

`benchmarks/guard_faults.py` plants every fault of `tests/guard/planted.py` and counts what is caught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perplexity_lies.engines.base import CannotShare, Engine, ScoreResult
from perplexity_lies.errors import PliesError
from perplexity_lies.guard.checks import CHECKS, fingerprint, weights
from perplexity_lies.guard.coverage import NOT_LOOKED_AT, not_looked_at
from perplexity_lies.guard.subject import TEXTS, CannotCheck, Check, Subject, Tolerance
from perplexity_lies.record.journal import entry
from perplexity_lies.record.manifest import GuardFacts, Rounding

__all__ = ["Check", "Guarded", "first_failed", "guard", "nats_by_key", "weights_unchanged"]

EXACT = Tolerance(nats=1e-4, cached_nats=1e-3, margin=1e-3)
"""In float32; no dtype has smaller ones."""

ROUNDINGS = 6.0
"""Below float32, tolerances are this many units in the last place of the checkpoint's largest logits."""

TYPICAL_ROUNDINGS = 1.1
"""Below float32, half of many tokens or stretches must lie within this many units (`typical.py`)."""

STRANGE = 0.02
"""Below float32, share of the tokens of long replies that may lie further behind the greedy one than `ROUNDINGS` units."""

UNSEEN = Tolerance(nats=0.5, cached_nats=0.5, margin=0.0, replies=0.2)
"""For an engine that does not show its model: its dtype and its sure tokens are unknown."""

NOT_CHECKED = "not checked: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """The outcome of every check."""

    checks: tuple[Check, ...]
    fingerprint: tuple[ScoreResult, ...]
    """Log-likelihoods of fixed texts under these weights; empty for an engine that cannot score."""
    rounding: Rounding
    """How far rounding may move this engine's numbers."""
    not_looked_at: tuple[str, ...] = ()
    """What no check looked at."""

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that did not pass."""
        return tuple(check for check in self.checks if check.passed is False)

    def describe(self) -> dict[str, GuardFacts]:
        """What the manifest records: name of the check -> what it found; and what no check looked at."""
        found = {name: facts for check in self.checks for name, facts in check.describe().items()}
        beyond = GuardFacts(passed=None, measured=None, tolerance=None, detail="; ".join(self.not_looked_at))
        return {**found, NOT_LOOKED_AT: beyond}


def _tolerance(dtype: str, rounding: float) -> Tolerance:
    """Tolerances for a dtype; `rounding` is one unit in the last place of the checkpoint's largest logits."""
    if dtype == "float32":
        return EXACT
    bar = ROUNDINGS * rounding
    return Tolerance(
        nats=max(EXACT.nats, bar),
        cached_nats=max(EXACT.cached_nats, bar),
        margin=max(EXACT.margin, bar),
        cached_median=True,
        typical_nats=max(EXACT.cached_nats, TYPICAL_ROUNDINGS * rounding),
        strange=STRANGE,
    )


def _subject(engine: Engine, *, full: bool, prompts: Sequence[str] = (), beginnings_told: bool = False) -> Subject:
    if engine.shown is None:
        return Subject(engine, None, UNSEEN, full=full, prompts=prompts, beginnings_told=beginnings_told)
    from perplexity_lies.guard.reference import Reference  # needs torch, which other engines may lack

    reference = Reference(engine.shown, engine.tokenizer)
    tolerance = _tolerance(engine.shown.dtype, reference.rounding(engine.encode(TEXTS[0])))
    return Subject(engine, reference, tolerance, full=full, prompts=prompts, beginnings_told=beginnings_told)


def _unchecked(name: str, why: Exception) -> Check:
    return Check(
        name=name, passed=None, measured=None, tolerance=None, detail=f"{NOT_CHECKED}{' '.join(str(why).split())}"
    )


def nats_by_key(results: Sequence[ScoreResult]) -> dict[str, float]:
    """Request key -> log-likelihood."""
    return {result.key: result.loglikelihood_nats for result in results}


def weights_unchanged(engine: Engine, earlier: Sequence[Mapping[str, float]]) -> Check:
    """Check that fixed texts have the log-likelihoods of `earlier` (each: request key -> nats)."""
    try:
        return weights(_subject(engine, full=False), earlier)
    except (CannotCheck, PliesError) as why:
        return _unchecked("weights", why)


def first_failed(engine: Engine, *only: str) -> Check | None:
    """The first check (of those named in `only`, if any) that does not pass, None where all do; later ones are not made.

    For those who plant faults. A run wants every check (`guard`).
    """
    subject = _subject(engine, full=False)
    for check in CHECKS:
        if only and check.__name__.replace("_", " ") not in only:
            continue
        try:
            found = check(subject)
        except (CannotCheck, CannotShare, PliesError):
            continue
        if found.passed is False:
            return found
    return None


def guard(engine: Engine, *, full: bool = False, prompts: Sequence[str] = (), beginnings_told: bool = False) -> Guarded:
    """Run every check on `engine`.

    `full` uses more probes; `prompts` (user messages) are used beside the fixed texts. `beginnings_told`: whoever asks takes care
    of a BOS that the tokenizer adds before a chat whose template writes none; it is then noted, and is no failure. A check that
    cannot be made of this engine is listed with the reason. Raises CheckpointError when log-likelihoods are not numbers, and
    whatever the engine raises other than PliesError.
    """
    subject = _subject(engine, full=full, prompts=prompts, beginnings_told=beginnings_told)
    try:
        loaded = tuple(subject.score(fingerprint(subject)))
    except (CannotCheck, PliesError):
        loaded = ()
    for result in loaded:
        entry(result)  # raises for NaN: nothing could be compared
    checks = []
    for check in CHECKS:
        try:
            checks.append(check(subject))
        except (CannotCheck, CannotShare, PliesError) as why:
            checks.append(_unchecked(check.__name__.replace("_", " "), why))
    checks.append(weights_unchanged(engine, [nats_by_key(loaded)]))
    rounding = Rounding(nats=subject.tolerance.nats, margin=subject.tolerance.margin)
    return Guarded(
        checks=tuple(checks),
        fingerprint=loaded,
        rounding=rounding,
        not_looked_at=tuple(not_looked_at(checks, shown=engine.shown is not None)),
    )
