"""Three or more checkpoints in order, on each rung: do the rungs agree on which is better?

    ranked = rank(compare_runs(RUN, RUN, RUN))
    ranked.tau      ->  Agreement(value=0.33, low=-0.33, high=1.0)
    ranked.verdict  ->  "by log-likelihood you would ship b; by generation a"

Scores are the overall ones: the unweighted mean over tasks asked on both rungs, over the items that pair on all sides and both
rungs. Uncertainty is over items: they are drawn again within each task (whole clusters where those are a sample), both rungs
of an item together (Efron & Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perplexity_lies.errors import UsageError
from perplexity_lies.files import write_whole
from perplexity_lies.read.comparison import Comparison
from perplexity_lies.read.numbers import TaskItems
from perplexity_lies.read.stats.moments import Floats
from perplexity_lies.read.stats.regimes import SAMPLE
from perplexity_lies.rungs import HIDDEN_GAP, RUNGS

DRAWS = 2000
FEWEST = 3
"""Checkpoints that make a ranking."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Kendall's tau-b between the rankings of two rungs, with its 95 % percentile interval; None where a rung ties all."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PairOrder:
    """Two checkpoints: the better by log-likelihood first."""

    first: str
    second: str
    loglikelihood_pp: float
    """First minus second, never below 0."""
    generation_pp: float
    wrong: float
    """Share of draws in which the rungs order the two the other way round; a tie counts half."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Checkpoints by rung, best first."""

    items: int
    scores: dict[str, tuple[tuple[str, float], ...]]
    """Rung -> (name, percent), best first."""
    tau: Agreement
    pairs: tuple[PairOrder, ...]
    """The likeliest to be ordered wrongly first."""
    verdict: str


def kendall_tau(one: Floats, other: Floats) -> Floats:
    """Tau-b of each row of two [draws, checkpoints]; NaN where a row is one tie (Kendall 1945, Biometrika 33:239)."""
    first, second = np.triu_indices(one.shape[1], 1)
    a, b = (np.sign(np.round(x[:, first] - x[:, second], 12)) for x in (one, other))
    size = np.sqrt((a != 0).sum(1) * (b != 0).sum(1))
    return np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1), np.nan)


def _cells(items: TaskItems) -> tuple[Floats, list[str]]:
    """Scores [n, 2, sides] of the items paired on both rungs, and their subjects."""
    if HIDDEN_GAP.minus not in items.rungs or HIDDEN_GAP.of not in items.rungs:
        return np.empty((0, 2, 0)), []
    rungs = [items.rungs[name] for name in (HIDDEN_GAP.minus, HIDDEN_GAP.of)]
    kept = [i for i in range(len(items.items)) if all(rung.paired[i] == "1" for rung in rungs)]
    scores = [[[side[i] for side in rung.scores] for rung in rungs] for i in kept]
    return np.array(scores, dtype=np.float64), [items.subjects[i] for i in kept] if items.subjects else []


def _draws(cells: Floats, subjects: list[str], rng: np.random.Generator) -> Floats:
    """Mean scores [DRAWS, 2, sides] of a task drawn again."""
    _, unit = np.unique(subjects, return_inverse=True) if len(set(subjects)) > 1 else (None, np.arange(len(cells)))
    sizes = np.bincount(unit).astype(np.float64)
    sums = np.zeros((len(sizes), *cells.shape[1:]))
    np.add.at(sums, unit, cells)
    taken = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS)
    return np.einsum("du,urs->drs", taken, sums) / (taken @ sizes)[:, None, None]


def _names(comparison: Comparison) -> list[str]:
    """The checkpoints' names; of equal ones each with its place."""
    names = [side.name for side in comparison.sides]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def rank(comparison: Comparison, seed: int = 0) -> Ranked:
    """Rank all sides, baseline or not. Raises UsageError for fewer than three, or where no item pairs on both rungs."""
    if len(comparison.sides) < FEWEST:
        raise UsageError(
            f"a ranking needs {FEWEST} checkpoints", found=f"{len(comparison.sides)}", mend="plies rank RUN RUN RUN"
        )
    rng, means, drawn, count = np.random.default_rng(seed), [], [], 0
    for items in comparison.items_of:
        cells, subjects = _cells(items)
        if len(cells):
            clustered = comparison.intervals.clusters.get(items.task, SAMPLE) == SAMPLE
            means.append(cells.mean(0))
            drawn.append(_draws(cells, subjects if clustered else [], rng))
            count += len(cells)
    if not means:
        raise UsageError(
            "there is nothing to rank", found="no item pairs on both rungs", mend="a suite with both rungs in a task"
        )
    found, draws, names = np.mean(means, axis=0), np.mean(drawn, axis=0), _names(comparison)
    scores = {
        rung: tuple((names[i], 100 * float(found[k, i])) for i in np.argsort(-found[k], kind="stable"))
        for k, rung in enumerate((HIDDEN_GAP.minus, HIDDEN_GAP.of))
    }
    taus = kendall_tau(draws[:, 0], draws[:, 1])
    tau = float(kendall_tau(found[None, 0], found[None, 1])[0])
    known = taus[~np.isnan(taus)]
    bounds = np.quantile(known, (0.025, 0.975)) if len(known) else (None, None)
    agreement = Agreement(*(None if v is None or np.isnan(v) else float(v) for v in (tau, *bounds)))
    pairs = tuple(sorted(_pairs(found, draws, names), key=lambda pair: -pair.wrong))
    return Ranked(items=count, scores=scores, tau=agreement, pairs=pairs, verdict=_verdict(scores, pairs))


def _pairs(found: Floats, draws: Floats, names: list[str]) -> list[PairOrder]:
    pairs = []
    for i, j in itertools.combinations(range(len(names)), 2):
        a, b = (i, j) if found[0, i] >= found[0, j] else (j, i)
        sign = np.sign(np.round(draws[:, :, a] - draws[:, :, b], 12)).prod(1)
        pairs.append(
            PairOrder(
                first=names[a],
                second=names[b],
                loglikelihood_pp=100 * float(found[0, a] - found[0, b]),
                generation_pp=100 * float(found[1, a] - found[1, b]),
                wrong=float((sign < 0).mean() + (sign == 0).mean() / 2),
            )
        )
    return pairs


def _verdict(scores: dict[str, tuple[tuple[str, float], ...]], pairs: tuple[PairOrder, ...]) -> str:
    best = {
        rung: [name for name, score in order if round(score, 9) == round(order[0][1], 9)]
        for rung, order in scores.items()
    }
    ranked, written = (" or ".join(best[rung]) for rung in (HIDDEN_GAP.minus, HIDDEN_GAP.of))
    shared = [name for name in best[HIDDEN_GAP.minus] if name in best[HIDDEN_GAP.of]]
    by = f"by {RUNGS[HIDDEN_GAP.minus].title}"
    if not shared:
        said = f"{by} you would ship {ranked}; by {RUNGS[HIDDEN_GAP.of].title} {written}"
    elif ranked == written:
        said = f"{by} and by {RUNGS[HIDDEN_GAP.of].title} you would ship {ranked}"
    else:
        said = (
            f"{by} you would ship {ranked}; by {RUNGS[HIDDEN_GAP.of].title} {written}: both allow {' or '.join(shared)}"
        )
    surely = sum(pair.wrong > 0.975 for pair in pairs)
    unsure = sum(0.025 <= pair.wrong <= 0.975 for pair in pairs)
    return f"{said}; of {len(pairs)} pairs {surely} are surely ordered wrongly, {unsure} cannot be told"


def ranking_lines(ranked: Ranked) -> list[str]:
    """The ranking as text, a line each."""
    lines = [ranked.verdict]
    for rung, order in ranked.scores.items():
        listed = ", ".join(f"{i}. {name} {score:.1f} %" for i, (name, score) in enumerate(order, 1))
        lines.append(f"{RUNGS[rung].title}: {listed}")
    tau = ranked.tau
    if tau.value is None or tau.low is None:
        lines.append("Kendall tau: undefined, a rung ties all checkpoints")
    else:
        lines.append(
            f"Kendall tau {tau.value:.2f}, 95 % interval [{tau.low:.2f}, {tau.high:.2f}], {ranked.items} items"
        )
    for pair in ranked.pairs:
        gaps = f"{pair.loglikelihood_pp:+.1f} pp by log-likelihood, {pair.generation_pp:+.1f} by generation"
        lines.append(f"{pair.first} over {pair.second}: {gaps}; wrong way round with probability {pair.wrong:.2f}")
    return lines


def write_ranking(ranked: Ranked, path: Path) -> None:
    """Write the ranking as JSON. Raises UsageError where that cannot be done."""
    try:
        write_whole(path, json.dumps(dataclasses.asdict(ranked), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UsageError("the ranking cannot be written", found=str(error), mend="a path of yours") from error
