"""The guard's check of sampled replies: drawn from the checkpoint's own distribution, cut as asked, by a seed of their own.

Each drawn token has a place U in its distribution (probability integral transform, randomised because tokens are discrete): with
the tokens from likely to unlikely, U is the sum of the probabilities before it and a random part of its own. If the engine draws
as it should, every U is uniform on [0, 1], whatever the prompt. Too cold a temperature moves the mean of U down, too hot one up;
the mean of |U - 1/2| sees the rest. Both means are compared with their expectation in standard errors. The sum of n uniform
numbers has lighter tails than the normal distribution, so a sound engine is above `MOST_ERRORS` = 5 in at most 6e-7 of cases for
each of the 2 means of 4 settings: a false alarm in fewer than 5 of a million checkpoints. A token that the setting cuts away
(top_k, top_p) is a fault at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perplexity_lies.engines.base import GenerateRequest, GenerateResult, Sampling
from perplexity_lies.guard.subject import CannotCheck, Check, Subject

if TYPE_CHECKING:
    import torch

SETTINGS = (
    Sampling(temperature=0.5),
    Sampling(temperature=1.7, top_k=6),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=2.0, top_k=12, top_p=0.8),
)
SEEDS = 8
SAMPLED_TOKENS = 16
MOST_ERRORS = 5.0
"""Standard errors between a mean of U and its expectation."""
LOWER_TOKENS = 3
EXACT_MARGIN = 1e-3
"""A larger margin is that of bfloat16 or float16."""
UNCLEAR_SHARE = 0.01
"""Below float32, probabilities so near to top_p may fall on either side."""
SURE_PROBABILITY = 0.9
"""Where the likeliest token has more than this on average, seeds need not tell replies apart."""


def kept_probabilities(logits: torch.Tensor, sampling: Sampling, slack: float = 0.0) -> torch.Tensor:
    """Probabilities [vocabulary] of one position by their definition: temperature, then the `top_k` likeliest, then the
    fewest that together hold `top_p`. `slack`: a token this far (in logits) below the last kept one is kept as well.
    """
    import torch

    scaled = logits.double() / sampling.temperature
    least = -torch.inf
    if sampling.top_k:
        least = float(scaled.topk(min(sampling.top_k, len(scaled))).values[-1])
    if sampling.top_p < 1:
        of_kept = scaled.masked_fill(scaled < least, -torch.inf).softmax(-1)
        held = of_kept.sort(descending=True)
        last = int((held.values.cumsum(-1) < sampling.top_p).sum())
        least = float(scaled[held.indices[min(last, len(scaled) - 1)]])
    return scaled.masked_fill(scaled < least - slack / sampling.temperature, -torch.inf).softmax(-1)


def is_clear(logits: torch.Tensor, sampling: Sampling, margin: float) -> bool:
    """Whether rounding (up to `margin` in logits) leaves it clear which tokens are kept.

    Depends on no draw, so that leaving unclear positions out moves no mean.
    """
    if not sampling.top_k and sampling.top_p >= 1:
        return True
    probabilities = kept_probabilities(logits, sampling)
    kept = int((probabilities > 0).sum())
    highest = logits.topk(min(kept + 1, len(logits))).values
    if kept < len(logits) and float(highest[kept - 1] - highest[kept]) <= margin:
        return False
    if sampling.top_p >= 1:
        return True
    whole = kept_probabilities(logits, Sampling(temperature=sampling.temperature, top_k=sampling.top_k))
    held = whole.topk(kept).values.cumsum(-1)
    near = UNCLEAR_SHARE if margin > EXACT_MARGIN else 1e-6
    return all(abs(float(share) - sampling.top_p) > near for share in held[-2:])


def place_of(token: int, probabilities: torch.Tensor, part: float) -> float | None:
    """U of a drawn token; None for one that has no probability. `part`: the random part of its own, in [0, 1]."""
    own = float(probabilities[token])
    if own <= 0:
        return None
    likelier = probabilities > own
    equal_before = (probabilities[:token] == own).sum()
    return float(probabilities[likelier].sum() + own * equal_before) + part * own


def errors_of(places: Sequence[float]) -> float:
    """The larger distance, in standard errors, of the means of U and |U - 1/2| from those of uniform numbers."""
    n = len(places)
    mean = abs(sum(places) / n - 0.5) * (12 * n) ** 0.5
    spread = abs(sum(abs(place - 0.5) for place in places) / n - 0.25) * (48 * n) ** 0.5
    return max(mean, spread)


def _requests(subject: Subject, sampling: Sampling) -> list[tuple[GenerateRequest, tuple[int, ...]]]:
    found = []
    for seed in range(SEEDS):
        probe = subject.probe(subject.texts[seed % 2])
        tokens = min(SAMPLED_TOKENS, subject.engine.context_tokens - len(probe.ids) - 1)
        request = GenerateRequest(
            prompt=probe.prompt, add_special_tokens=probe.add_special_tokens, max_new_tokens=tokens, sampling=sampling,
            seed=1009 * seed + 7, max_prompt_tokens=probe.max_prompt_tokens,
        )  # fmt: skip
        found.append((request, probe.ids))
    return found


def sampling(subject: Subject) -> Check:
    """Sampled replies follow the checkpoint's distribution, keep to top_k and top_p, and depend on their own seed alone."""
    if subject.reference is None:
        raise CannotCheck("this engine does not show its model: its distribution is not known here")
    from perplexity_lies.guard.watch import kept_out

    reference, faults, worst, drawn = subject.reference, [], 0.0, 0
    asked = {setting: _requests(subject, setting) for setting in SETTINGS}
    with kept_out(reference, reference.end_ids):
        flat = [request for of_setting in asked.values() for request, _ in of_setting]
        replies = dict(zip((request.key for request in flat), subject.reply(flat), strict=True))
        faults += _changed_by_company(subject, asked, replies)
        for setting, of_setting in asked.items():
            places, outside, sure = _places(subject, setting, [(replies[r.key], ids) for r, ids in of_setting])
            drawn += len(places) + outside
            said = f"temperature {setting.temperature:g}, top_k {setting.top_k}, top_p {setting.top_p:g}"
            if outside:
                faults.append(f"{outside} tokens that {said} cuts away")
            if places:
                errors = errors_of(places)
                worst = max(worst, errors)
                if errors > MOST_ERRORS:
                    faults.append(f"{errors:.1f} standard errors from the distribution of {said}")
            texts = {(ids, replies[r.key].token_ids) for r, ids in of_setting}
            if sure < SURE_PROBABILITY and len(texts) <= 2:
                faults.append(f"{SEEDS} seeds gave {len(texts)} replies")
    if not drawn:
        raise CannotCheck("the engine does not tell which tokens it drew")
    detail = f"{drawn} tokens drawn by {SEEDS} seeds in {len(SETTINGS)} settings: up to {worst:.1f} standard errors off"
    passed = worst <= MOST_ERRORS and not faults
    return Check(
        name="sampling", passed=passed, measured=worst, tolerance=MOST_ERRORS, detail="; ".join([detail, *faults[:3]])
    )


def _changed_by_company(
    subject: Subject,
    asked: dict[Sampling, list[tuple[GenerateRequest, tuple[int, ...]]]],
    replies: dict[str, GenerateResult],
) -> list[str]:
    """Replies that are others alone or in other company; below float32 their first tokens count, and half may differ.

    Rounding changes one of `LOWER_TOKENS` tokens in about 6 of 100 rows there: a false alarm in 4 of 100,000 checkpoints.
    """
    first = LOWER_TOKENS if subject.tolerance.cached_median else None
    some = [request for of_setting in asked.values() for request, _ in of_setting[:2]]
    again = [subject.reply_alone(some[0]), *subject.reply(some[1:][::-1])]
    compared = len(again)
    differing = sum(reply.token_ids[:first] != replies[reply.key].token_ids[:first] for reply in again)
    most = compared / 2 if first else 0
    return [f"{differing} of {compared} replies are others alone or in other company"] if differing > most else []


def _places(
    subject: Subject, setting: Sampling, replies: Sequence[tuple[GenerateResult, tuple[int, ...]]]
) -> tuple[list[float], int, float]:
    """U of every token, how many tokens have none, and the average probability of the likeliest token."""
    from perplexity_lies.guard.watch import after

    assert subject.reference is not None
    rng, places, outside, sure = random.Random(0), [], 0, []
    for reply, ids in replies:
        if not reply.token_ids:
            continue
        for token, logits in zip(reply.token_ids, after(subject.reference, ids, reply.token_ids), strict=True):
            probabilities = kept_probabilities(logits, setting)
            place = place_of(token, probabilities, rng.random())
            sure.append(float(probabilities.max()))
            if place is not None:
                if is_clear(logits, setting, subject.tolerance.margin / 3):
                    places.append(place)
            elif not kept_probabilities(logits, setting, subject.tolerance.margin)[token] > 0:
                outside += 1  # not even rounding lets it in
    return places, outside, sum(sure) / max(1, len(sure))
