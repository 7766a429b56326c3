"""The artifact guard: before a gap is believed, is it the checkpoint's own, or is the engine at fault?

Log-likelihood is read off forward passes over whole rows; generation runs token by token from states. A fault in one path
alone (a mask dropped, a pad that is read, a state not forked, another prompt's prefix, a stale cache, a doubled template)
opens a hidden gap that no checkpoint has. Each check asks the same thing in two ways that must agree; greedy match by
log-likelihood against greedy generation, as LAMBADA is scored, is the negative control.

Bars. float32: 1e-4 nats for a continuation, 1e-3 nats for a token by the model's own cache (measured over ten random families
and five trained checkpoints: 2e-5 and 2e-4), and every sure token of a reply. Below float32: 6 units in the last place of the
checkpoint's largest logits. Measured in the same way: a continuation moves by up to 2.4 of them in bfloat16 and 3.4 in
float16, and the median token by the cache by 0.7; its largest, 75, is a mixture of experts whose router turned.

Short form, for an engine that shows its model: at most 18,000 tokens through it where a token is a letter, about 4,000 where
it is most of a word, and never more than 250 passes of at most 256 tokens a row.

Knows nothing of runs or reports. What it cannot see: a fault that every path shares, such as wrong weights in the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perplexity_lies.engines.base import CannotShare, Engine, ScoreResult
from perplexity_lies.errors import PliesError
from perplexity_lies.guard.checks import CHECKS, fingerprint, weights
from perplexity_lies.guard.subject import TEXTS, CannotCheck, Check, Subject, Tolerance
from perplexity_lies.protocols.base import plain

__all__ = ["Check", "Guarded", "guard", "nats_by_key", "weights_unchanged"]

EXACT = Tolerance(nats=1e-4, cached_nats=1e-3, margin=1e-3)
"""The bars of float32, and the least of any dtype."""

ROUNDINGS = 6.0
"""Below float32 the bars are this many units in the last place of the checkpoint's largest logits (see the module)."""

UNSEEN = Tolerance(nats=0.5, cached_nats=0.5, margin=0.0, replies=0.2)
"""Of an engine that does not show its model: its dtype and its sure tokens are unknown."""

NOT_CHECKED = "not checked: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """What the guard found."""

    checks: tuple[Check, ...]
    fingerprint: tuple[ScoreResult, ...]
    """Log-likelihoods of fixed texts under these weights; none of an engine that cannot score."""
    tolerance: Tolerance
    """What rounding may do in this engine's dtype."""

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that did not pass."""
        return tuple(check for check in self.checks if check.passed is False)

    def describe(self) -> dict[str, dict[str, Any]]:
        """For the manifest: name -> passed, measured, tolerance, detail."""
        return {name: facts for check in self.checks for name, facts in check.describe().items()}


def _tolerance(dtype: str, rounding: float) -> Tolerance:
    """What rounding may do to a checkpoint whose logits can be told apart by `rounding`."""
    if dtype == "float32":
        return EXACT
    bar = ROUNDINGS * rounding
    return Tolerance(
        nats=max(EXACT.nats, bar),
        cached_nats=max(EXACT.cached_nats, bar),
        margin=max(EXACT.margin, bar),
        cached_median=True,
    )


def _subject(engine: Engine, *, full: bool, prompts: Sequence[str] = ()) -> Subject:
    settings = engine.settings
    if settings.get("engine") != "torch":
        return Subject(engine, None, UNSEEN, full=full, prompts=prompts)
    from perplexity_lies.guard.reference import Reference  # torch, which an engine of another kind may lack

    model: Any = vars(engine)["model"]
    reference = Reference(model, engine.tokenizer, settings["threads"])
    tolerance = _tolerance(settings["dtype"], reference.rounding(engine.encode(TEXTS[0])))
    return Subject(engine, reference, tolerance, full=full, prompts=prompts)


def _unchecked(name: str, why: Exception) -> Check:
    return Check(
        name=name, passed=None, measured=None, tolerance=None, detail=f"{NOT_CHECKED}{' '.join(str(why).split())}"
    )


def nats_by_key(results: Sequence[ScoreResult]) -> dict[str, float]:
    """Request key -> log-likelihood."""
    return {result.key: result.loglikelihood_nats for result in results}


def weights_unchanged(engine: Engine, earlier: Sequence[Mapping[str, float]]) -> Check:
    """Whether fixed texts still have the log-likelihoods that they had `earlier` (each: request key -> nats)."""
    try:
        return weights(_subject(engine, full=False), earlier)
    except (CannotCheck, PliesError) as why:
        return _unchecked("weights", why)


def guard(engine: Engine, *, full: bool = False, prompts: Sequence[str] = ()) -> Guarded:
    """Every check of `engine`; `full` with more probes, `prompts` (a user's messages) beside the fixed ones.

    A check that cannot be made of this engine is listed with its reason; whatever the engine raises beside PliesError is
    let through. Raises CheckpointError when its log-likelihoods are not numbers: nothing could be compared.
    """
    subject = _subject(engine, full=full, prompts=prompts)
    try:
        loaded = tuple(subject.score(fingerprint(subject)))
    except (CannotCheck, PliesError):
        loaded = ()
    for result in loaded:
        plain(result)
    checks = []
    for check in CHECKS:
        try:
            checks.append(check(subject))
        except (CannotCheck, CannotShare, PliesError) as why:
            checks.append(_unchecked(check.__name__.replace("_", " "), why))
    checks.append(weights_unchanged(engine, [nats_by_key(loaded)]))
    return Guarded(checks=tuple(checks), fingerprint=loaded, tolerance=subject.tolerance)
