"""Prompts that lost their beginning, item by item: where the sides, or the rungs, were not asked the same question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perplexity_lies.read.pairing import Paired, Records
from perplexity_lies.rungs import CONTRASTS, RUNGS


def _cut(records: Records, task: str, rung: str, item: str) -> int:
    """Tokens cut from an item's prompt, the most over its seeds."""
    return max(seen.cut_tokens for seen in records[task, rung][item])


def cut_differently(
    task: str, pairs: dict[str, Paired], sides: Sequence[Records], labels: Sequence[str]
) -> Iterator[str]:
    """What to say of paired items whose prompts were cut by another length on another side, or on one rung alone."""
    for rung, paired in pairs.items():
        count = sum(len({_cut(records, task, rung, item) for records in sides}) > 1 for item in paired.items)
        if count:
            yield f"{count} of {len(paired.items)} items were cut by other lengths on each side under {RUNGS[rung].title}"
    for contrast in CONTRASTS:
        if contrast.of not in pairs or contrast.minus not in pairs:
            continue
        common = sorted(set(pairs[contrast.of].items) & set(pairs[contrast.minus].items))
        for records, label in zip(sides, labels, strict=True):
            cut = [[_cut(records, task, rung, item) > 0 for rung in (contrast.of, contrast.minus)] for item in common]
            count = sum(of != minus for of, minus in cut)
            if count:
                yield (
                    f"{count} of {len(common)} items of the {label} lost their beginning on one rung alone: a "
                    f"{contrast.title} there is in part the cut"
                )
