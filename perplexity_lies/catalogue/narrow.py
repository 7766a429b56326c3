"""Less of a suite than it holds, or another decoding: `--tasks`, `--seeds`, `--greedy`.

    narrow(suite, tasks="mmlu,piqa", seeds="1", greedy=True)   ->   a suite of two tasks, one seed, temperature 0

What is left out stands in `Suite.narrowed`; the digest is another one, so that runs of different parts do not compare.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import replace
from typing import Any

from perplexity_lies.catalogue.tasks import LARGEST_SEED, RungSettings, Suite, TaskSpec
from perplexity_lies.digests import canonical_json
from perplexity_lies.errors import UsageError, nearest


def narrow(suite: Suite, *, tasks: str | None = None, seeds: str | None = None, greedy: bool = False) -> Suite:
    """`suite` with the named tasks alone, other seeds, or the likeliest token each time; `suite` itself for none of these.

    Raises UsageError for a task that the suite lacks, or for what is not a list of seeds.
    """
    numbers = _seeds(seeds)
    chosen = _chosen(suite, tasks)
    said = []
    if len(chosen) < len(suite.tasks):
        said.append(f"{len(chosen)} of {len(suite.tasks)} tasks were asked")
    if not greedy and numbers and (fewer := max((len(_own_seeds(task)) for task in chosen), default=0)) > len(numbers):
        said.append(f"{len(numbers)} of {fewer} seeds were asked")
    changed = tuple(_changed(task, numbers, greedy) for task in chosen)
    if changed == suite.tasks:
        return suite
    told = {"suite": suite.digest, "tasks": [task.name for task in chosen], "seeds": numbers, "greedy": greedy}
    digest = f"sha256:{hashlib.sha256(canonical_json(told).encode()).hexdigest()}"
    return replace(suite, tasks=changed, digest=digest, narrowed=(*suite.narrowed, *said))


def _chosen(suite: Suite, tasks: str | None) -> tuple[TaskSpec, ...]:
    """The tasks named, in the suite's order."""
    known = {task.name: task for task in suite.tasks}
    wanted = list(known) if tasks is None else [name.strip() for name in tasks.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"suite {suite.name!r} has no task {name!r}{nearest(name, known)}",
                found=f"tasks: {', '.join(known)}",
                mend="--tasks NAME,NAME",
            )
    return tuple(task for name, task in known.items() if name in wanted)


def _seeds(seeds: str | None) -> tuple[int, ...]:
    if seeds is None:
        return ()
    parts = [part.strip() for part in seeds.split(",")]
    numbers = tuple(int(part) for part in parts if part.isdecimal() and part.isascii() and len(part) <= 10)
    if len(set(numbers)) < len(parts) or max(numbers) > LARGEST_SEED:
        raise UsageError(
            f"--seeds {seeds} is not a list of distinct seeds",
            found=f"whole numbers up to {LARGEST_SEED} with commas between",
            mend="--seeds 1,2,3",
        )
    return numbers


def _own_seeds(task: TaskSpec) -> tuple[int, ...]:
    return max((getattr(own, "seeds", ()) for own in task.rungs.values()), key=len, default=())


def _changed(task: TaskSpec, seeds: tuple[int, ...], greedy: bool) -> TaskSpec:
    return replace(task, rungs={rung: _settings(own, seeds, greedy) for rung, own in task.rungs.items()})


def _settings(own: RungSettings, seeds: tuple[int, ...], greedy: bool) -> RungSettings:
    """Greedy decoding has one seed: another one would give the same reply."""
    known = {field.name for field in dataclasses.fields(own)}
    new: dict[str, Any] = {"seeds": seeds} if seeds and "seeds" in known else {}
    if greedy and "temperature" in known:
        new |= {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seeds": (0,)}
    return replace(own, **new) if new else own
