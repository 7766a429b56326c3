"""A student's scores over its stages 3: measured as it trains, kept on disk, and the best of them.

curve = Curve(directory, student, tokenizer, kl=..., measure=..., keep=True)
curve.look("distil", key, step, tokens)
best_point(curve.points, "generation").checkpoint
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.export import export_checkpoint
from distill.training.distributed import is_first, wait_for_all
from distill.training.states import whole
from perplexity_lies.checked import Checked, checked
from perplexity_lies.files import read_json, write_whole
from perplexity_lies.in_the_loop import Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Point(Checked):
    """The student at one moment of a stage."""

    stage: str
    step: int
    tokens: int
    """Tokens that stages 3 have seen up to here."""
    kl: float
    """Mean KL(teacher || student) on documents that no stage trains on, nats per token."""
    scores: dict[str, float] = field(default_factory=dict)
    """Rung -> percent of items; empty when nothing measures."""
    checkpoint: str = ""
    """Folder of the exported weights within the run directory, or empty when they were not kept."""


def best_point(points: Sequence[Point], criterion: str) -> Point:
    """The point with the lowest `kl`, or the highest score on a rung; the later one of equals.

    Raises ValueError when there are no points.
    """
    latest_first = list(reversed(points))
    if criterion == "kl":
        return min(latest_first, key=lambda point: point.kl)
    return max(latest_first, key=lambda point: point.scores[criterion])


class Curve:
    """The points of one student, in the order in which they were looked at."""

    def __init__(
        self,
        directory: Path,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kl: Callable[[PreTrainedModel], float],
        measure: Measure | None,
        keep: bool,
    ) -> None:
        """`kl` gives a student's KL to the teacher; `keep` keeps the weights of every point."""
        self.directory, self.student, self.tokenizer = directory, student, tokenizer
        self.kl, self.measure, self.keep = kl, measure, keep
        self.points: list[Point] = []

    def look(self, stage: str, key: str, step: int, tokens: int) -> None:
        """Adds the point of the student as it is now: measured, or read where it was measured before a kill."""
        path = self.directory / "stages" / f"point-{stage}-{key}-{step}.json"
        wait_for_all()
        if not path.exists():
            student = whole(self.student)
            if is_first():
                weights = path.with_suffix("")
                kl, scores = self._measured(student, weights)
                kept = str(weights.relative_to(self.directory)) if self.keep else ""
                point = Point(stage=stage, step=step, tokens=tokens, kl=kl, scores=scores, checkpoint=kept)
                write_whole(path, json.dumps(dataclasses.asdict(point), indent=2) + "\n")
        wait_for_all()
        mend = f"delete {path}: it will be measured again"
        self.points.append(checked(Point, read_json(path, f"{path} is not a point", mend), str(path), mend))

    def _measured(self, student: PreTrainedModel, weights: Path) -> tuple[float, dict[str, float]]:
        """KL, and percent by rung; the student's weights stay in `weights` where they are to be kept."""
        kl, scores = self.kl(student), dict[str, float]()
        if self.measure is not None or self.keep:
            export_checkpoint(student, self.tokenizer, weights)
        if self.measure is not None:
            found = self.measure(weights)
            scores = {rung: found.percent(rung) for rung in found.rungs}
        if not self.keep:
            shutil.rmtree(weights, ignore_errors=True)
        return kl, scores
