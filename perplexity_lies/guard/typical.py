"""How far apart many numbers of one engine may be: bars for the bulk of them, where a single one may be far out.

In float32 the largest difference counts. In bfloat16 and float16 one bar for the largest of a few numbers must be so wide that a
position off by one passes below it. So the bulk of many is held as well: the median within `Tolerance.typical_nats` (1.1 units
in the last place of the logits; sound engines reach 0.7), nine tenths within 1.6 times that (sound: 1.3 units), and the median of
any eight neighbours within 2.2 times that (sound: 1.5 units), because a fault may begin late in one row. A checkpoint that is
itself rougher, as one with a router of experts may be, is held to what its own cache does without the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from perplexity_lies.guard.subject import Subject

NINE_TENTHS = 1.6
"""The 9th decile may be this many times as far out as the median."""
ENOUGH = 20
"""The 9th decile of fewer numbers would be the largest, or nearly."""
STRETCH = 8
STRETCHES = 2.2
"""The median of `STRETCH` neighbouring tokens may be this many times as far out as that of all."""
OWN_CACHE = 1.3
"""The engine may be this many times as far out as the model's own cache."""


def stretch_medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """The median of every `STRETCH` neighbours of each row: what goes wrong for good, if only late in one row, shows in it."""
    return [median(row[at : at + STRETCH]) for row in rows for at in range(max(0, len(row) - STRETCH + 1))]


def decile(numbers: Sequence[float]) -> float:
    """The 9th decile."""
    return sorted(numbers)[int(0.9 * len(numbers))]


def own_cache(subject: Subject) -> list[float]:
    """For each token of the fixed texts, how far the model's own cache, token by token, is from a full forward pass, in nats.

    A single 0.0 where the engine does not use it so: what is not used excuses nothing.
    """
    reference = subject.reference
    if reference is None or reference.why_not_cached:
        return [0.0]
    apart: list[float] = []
    for text in subject.texts:
        ids = subject.encoded(text)
        half = (len(ids) + 1) // 2
        stepwise = reference.logits_token_by_token(ids, half)
        apart += reference.apart_nats(reference.logits([ids])[0][half:], stepwise[half:])
    return apart


def typical(subject: Subject, rows: Sequence[Sequence[float]]) -> tuple[float, float, str]:
    """What is measured of many differences in nats (row by row), its bar, and its name in words.

    In float32 the largest, with the bar of a token from the cache. Below, the median of all, their 9th decile, or the largest
    median of neighbours: whichever is furthest beyond its bar.
    """
    tolerance, apart = subject.tolerance, [one for row in rows for one in row]
    if not tolerance.cached_median:
        return max(apart), tolerance.cached_nats, "up to"
    own = subject.once("own cache", lambda: own_cache(subject))
    bar = max(tolerance.typical_nats, OWN_CACHE * median(own))
    high = max(NINE_TENTHS * tolerance.typical_nats, OWN_CACHE * decile(own))
    found = [(median(apart), bar, "in the median")]
    if len(apart) >= ENOUGH:
        found.append((decile(apart), high, "in nine tenths within"))
    if stretches := stretch_medians(rows):
        found.append((max(stretches), STRETCHES * bar, f"in the median of {STRETCH} neighbours up to"))
    return max(found, key=lambda one: one[0] / one[1])
