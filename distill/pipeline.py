"""A recipe from beginning to end: teacher, alignment, layer selection, distillation, checkpoints.

    teacher -> stages 1, 2 (every layer a mixer) -> selection -> stages 3a, 3b (hybrid) -> student/

The student is made from the teacher *as exported* (rounded to bfloat16), the one that everybody else can load. Every
stage keeps its state in a directory named after everything that led to it, so the same call after a kill goes on where it
was, and recipes that begin alike share what they have in common (`distill.ablate`). Knows nothing of how a checkpoint is
measured: that is a function it is given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from distill.data import Batch, Stream, open_documents
from distill.export import export_checkpoint, load_exported
from distill.measure import PROTOCOLS, Measure, Point, Scores, best_point, percent
from distill.miniature.teacher import new_teacher
from distill.miniature.tokenizer import build_tokenizer
from distill.pages.cards import write_cards
from distill.pages.report import write_report
from distill.recipe.files import read_recipe
from distill.recipe.settings import LAYER_PLANS, Recipe, StageConfig, StudentConfig, TeacherConfig
from distill.selection.greedy import Selection, select_layers
from distill.students.convert import assembled, new_student
from distill.students.hybrid import HybridForCausalLM
from distill.training.distributed import is_first, shard, wait_for_all
from distill.training.stages import StageLoss, loss_in, mean_kl, trainable_in
from distill.training.states import decisive, whole
from distill.training.train import Tally, closing_loss, opening_check, train
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.errors import UsageError
from perplexity_lies.progress import Reporter
from suites.miniature.catalogue import all_items
from suites.miniature.world import vocabulary

HELD_SEED = 999_983
"""Data seed of `held_batches`, on which layer sets and checkpoints are scored and stages checked; no stage trains with it."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A loaded teacher, frozen."""

    name: str
    path: Path
    digest: str
    model: Any
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Aligned:
    """All-mixer students after stages 1 and 2, by mixer."""

    students: dict[str, HybridForCausalLM]
    key: str
    """Everything that led here."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How a stage ended: what the next one must find."""

    loss: StageLoss
    batch: Batch
    rows: int
    """Of the batch at a time; 0: all."""
    value: float

    def check(self) -> None:
        """Raises TrainingError when the model is not what the stage left."""
        opening_check(self.value, self.loss.value(self.batch, self.rows))


def digest(*parts: Any) -> str:
    """Ten hexadecimal digits over plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def mixer_name(mixer: str | tuple[str, ...]) -> str:
    """One word for a student's mixers."""
    return mixer if isinstance(mixer, str) else "-".join(mixer)


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Workshop:
    """One directory of stages, and what they share: device, documents, the function that measures."""

    def __init__(
        self,
        directory: Path,
        *,
        device: str = "cpu",
        measure: Measure | None = None,
        report_to: Sequence[str] = (),
        sharded: bool = False,
    ) -> None:
        self.directory, self.device, self.measure, self.report_to = directory, device, measure, report_to
        self.sharded = sharded
        self.tallies: dict[str, Tally] = {}
        self.held_out = frozenset(item.question for items in all_items().values() for item in items)

    def stream(
        self, recipe: Recipe, stage: StageConfig, tokenizer: PreTrainedTokenizerBase, seed: int | None = None
    ) -> Stream:
        """The documents of a stage, packed; `seed` in the place of its own."""
        documents = open_documents(
            recipe.data,
            stage.data,
            seed=stage.data_seed if seed is None else seed,
            tokenizer=tokenizer,
            length=stage.length,
            cache=self.directory / "tokens",
            tokens_needed=stage.steps * stage.tokens_per_step,
            held_out=self.held_out,
            reporter=Reporter(quiet=not is_first()),
        )
        # Positions and weights tell padding, so that any token will do.
        pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        return Stream(documents, stage.rows, stage.length, stage.prompt_weight, pad_id)

    def run_stage(
        self,
        recipe: Recipe,
        stage: StageConfig,
        before: str,
        tokenizer: PreTrainedTokenizerBase,
        model: nn.Module,
        loss: StageLoss,
        previous: Closing | None = None,
        on_measure: Callable[[str, Tally], None] | None = None,
    ) -> tuple[str, Closing]:
        """Trains `model` through a stage; returns the key of what came out and how it closed.

        Raises TrainingError when the model is not what `previous` left, or when the stage diverges.
        """
        if previous is not None:
            previous.check()
        used = [recipe.data[name] for name in ([stage.data] if isinstance(stage.data, str) else stage.data)]
        key = digest(before, decisive(dataclasses.asdict(stage)), [dataclasses.asdict(source) for source in used])
        directory = self.directory / "stages" / f"{stage.name}-{key}"
        stream = self.stream(recipe, stage, tokenizer)
        self.tallies[stage.name] = train(
            stage,
            model,
            trainable_in(stage),
            loss,
            stream,
            directory,
            device=self.device,
            on_measure=None if on_measure is None else lambda tally: on_measure(key, tally),
            report_to=self.report_to,
        )
        batch = self.stream(recipe, stage, tokenizer, HELD_SEED).batch(0).to(self.device)
        return key, Closing(loss, batch, stage.micro_rows, closing_loss(directory, loss, batch, stage.micro_rows))

    def teacher(self, recipe: Recipe) -> Teacher:
        """The recipe's teacher: trained here, or loaded from where it is.

        Raises MissingError or CheckpointError when it is nowhere or broken.
        """
        path = self.directory / "teacher"
        if isinstance(recipe.teacher, TeacherConfig):
            tokenizer = build_tokenizer(vocabulary())
            raw = new_teacher(recipe.teacher, tokenizer, recipe.seed).to(self.device)
            key = digest(dataclasses.asdict(recipe.teacher), recipe.seed)
            for stage in recipe.stages:
                if stage.kind == "pretrain":
                    key, _ = self.run_stage(recipe, stage, key, tokenizer, raw, loss_in(stage, raw, raw))
            if is_first():
                export_checkpoint(raw, tokenizer, path)
            wait_for_all()
        else:
            files = resolve(recipe.teacher).path
            if files is None:
                raise UsageError("a teacher is a checkpoint's files, not a server's address", found=recipe.teacher)
            path = files
        found = resolve(str(path))
        model, tokenizer = load_exported(path)
        name = str(path) if isinstance(recipe.teacher, TeacherConfig) else recipe.teacher
        return Teacher(name, path, found.digest, model.to(self.device).requires_grad_(False), tokenizer)

    def align(self, recipe: Recipe, teacher: Teacher, mixers: Sequence[str | tuple[str, ...]]) -> Aligned:
        """Stages 1 and 2 for several mixers in the same teacher passes; none of them touches another."""
        students: dict[str, HybridForCausalLM] = {}
        for mixer in mixers:
            config = dataclasses.replace(recipe.student, mixer=mixer)
            students[mixer_name(mixer)] = new_student(teacher.model, recipe.seed, config).to(self.device)
        together = nn.ModuleDict(students)
        key = digest(teacher.digest, recipe.seed, sorted(students), _switches(recipe.student))
        closing = None
        for stage in recipe.stages:
            if stage.kind in ("1", "2"):
                loss = loss_in(stage, teacher.model, together)
                key, closing = self.run_stage(recipe, stage, key, teacher.tokenizer, together, loss, closing)
        if closing is not None:
            closing.check()
        return Aligned(students, key)

    def held_batches(self, recipe: Recipe, teacher: Teacher) -> list[Batch]:
        """Completions of the last stage's kind, to measure a student on, in its micro-batches.

        Of the miniature world some that no stage trains on; of files and datasets what that stage reads, in another order.
        """
        stage = dataclasses.replace(recipe.stages[-1], prompt_weight=0.0)
        stream, position = self.stream(recipe, stage, teacher.tokenizer, HELD_SEED), 0
        batches: list[Batch] = []
        for _ in range(recipe.student.selection_batches):
            batch = stream.batch(position).to(self.device)
            batches += batch.parts(stage.micro_rows)
            position = batch.next_position
        return batches

    def kl(self, recipe: Recipe, teacher: Teacher, student: HybridForCausalLM) -> float:
        """Mean KL(teacher || student) on `held_batches`, nats per token."""
        return mean_kl(teacher.model, student, self.held_batches(recipe, teacher))

    def select(self, recipe: Recipe, teacher: Teacher, student: HybridForCausalLM, key: str) -> Selection:
        """Which layers keep attention: as the recipe says, or greedily by KL; kept in `stages/selection-KEY.json`.

        Raises UsageError when the recipe names layers that the teacher does not have.
        """
        keep, layers = recipe.student.keep, teacher.model.config.num_hidden_layers
        named = LAYER_PLANS[keep] if isinstance(keep, str) else keep
        if isinstance(named, tuple):
            if any(not 0 <= layer < layers for layer in named):
                raise UsageError(
                    "student.keep names layers that the teacher lacks", found=f"{named} of {layers} layers"
                )
            return Selection(tuple(sorted(set(named))), {})
        if not 0 <= named <= layers:
            raise UsageError(
                f"student.keep asks for {named} of {layers} layers", mend=f"--set student.keep={layers // 4}"
            )
        if named == 0:
            return Selection((), {})
        led_here = digest(key, mixer_name(recipe.student.mixer), named, recipe.student.selection_batches)
        path = self.directory / "stages" / f"selection-{led_here}.json"
        if path.exists():
            kept, scored = json.loads(path.read_text(encoding="utf-8"))
            return Selection(tuple(kept), {tuple(layer_set): kl for layer_set, kl in scored})
        batches = self.held_batches(recipe, teacher)

        def kl_of(kept: tuple[int, ...]) -> float:
            return mean_kl(teacher.model, assembled(teacher.model, student, kept).to(self.device), batches)

        selection = select_layers(kl_of, layers, named)
        if is_first():
            write_json(path, [selection.kept, list(selection.kl_nats.items())])
        return selection

    def distil(
        self, recipe: Recipe, teacher: Teacher, aligned: Aligned
    ) -> tuple[HybridForCausalLM, Selection, list[Point]]:
        """Selection and stages 3: the hybrid student, why these layers, and what it was on the way.

        Raises TrainingError when the hybrid is not what selection saw, or when a stage diverges.
        """
        student = aligned.students[mixer_name(recipe.student.mixer)]
        selection = self.select(recipe, teacher, student, aligned.key)
        hybrid = assembled(teacher.model, student, selection.kept).to(self.device)
        if selection.kept in selection.kl_nats:
            opening_check(selection.kl_nats[selection.kept], self.kl(recipe, teacher, hybrid))
        if self.sharded:
            shard(hybrid)
        key = digest(aligned.key, mixer_name(recipe.student.mixer), selection.kept)
        curve = Curve(self, recipe, teacher, hybrid)
        curve.look("aligned", key, Tally())
        seen, closing = 0, None
        for stage in recipe.stages:
            if stage.kind.startswith("3"):
                loss = loss_in(stage, teacher.model, hybrid)
                curve.begin(stage, seen)
                key, closing = self.run_stage(
                    recipe, stage, key, teacher.tokenizer, hybrid, loss, closing, curve.measure_in_stage
                )
                seen += self.tallies[stage.name].tokens
        return whole(hybrid), selection, curve.points


def _switches(student: StudentConfig) -> dict[str, Any]:
    """What of a student's configuration stages 1 and 2 depend on, the mixer apart."""
    later = ("mixer", "keep", "selection_batches")
    return {name: value for name, value in dataclasses.asdict(student).items() if name not in later}


class Curve:
    """A student's points over its stages 3, measured as it trains and found again after a kill.

    Stays empty where nothing measures and the last weights are what is wanted.
    """

    def __init__(self, shop: Workshop, recipe: Recipe, teacher: Teacher, student: HybridForCausalLM) -> None:
        self.shop, self.recipe, self.teacher, self.student = shop, recipe, teacher, student
        self.points: list[Point] = []
        self._stage, self._seen = "", 0

    def begin(self, stage: StageConfig, seen: int) -> None:
        """Points that follow are of `stage`, before which stages 3 have seen `seen` tokens."""
        self._stage, self._seen = stage.name, seen

    def measure_in_stage(self, key: str, tally: Tally) -> None:
        """A point of the stage under way."""
        self.look(self._stage, key, tally)

    def look(self, stage: str, key: str, tally: Tally) -> None:
        """Measures the student as it is now, unless that was done already."""
        if self.shop.measure is None and self.recipe.select_by == "last":
            return
        path = self.shop.directory / "stages" / f"point-{stage}-{key}-{tally.step}.json"
        wait_for_all()
        if not path.exists():
            student = whole(self.student)
            if is_first():
                write_json(path, dataclasses.asdict(self._measured(student, stage, tally, path.with_suffix(""))))
        wait_for_all()
        self.points.append(Point(**json.loads(path.read_text(encoding="utf-8"))))

    def _measured(self, student: HybridForCausalLM, stage: str, tally: Tally, directory: Path) -> Point:
        kl = self.shop.kl(self.recipe, self.teacher, student)
        scores: dict[str, float] = {}
        keep = self.recipe.select_by != "last"
        if self.shop.measure is not None or keep:
            export_checkpoint(student, self.teacher.tokenizer, directory)
        if self.shop.measure is not None:
            found = self.shop.measure(directory)
            scores = {protocol: percent(found, protocol) for protocol in PROTOCOLS}
            if not keep:
                shutil.rmtree(directory)
        return Point(
            stage=stage, step=tally.step, tokens=self._seen + tally.tokens, kl=kl, scores=scores,
            checkpoint=str(directory.relative_to(self.shop.directory)) if keep else "",
        )  # fmt: skip


def keep_recipe(recipe: Recipe, directory: Path) -> None:
    """Writes the resolved recipe into its directory.

    Its `history` changes no weights and may differ. Raises UsageError when another recipe was run there.
    """
    path = directory / "recipe.yaml"
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False)
    if path.exists():
        kept, asked = read_recipe(str(path))[0], yaml.safe_load(text)
        differing = [key for key in {**kept, **asked} if key != "history" and kept.get(key) != asked.get(key)]
        if differing:
            raise UsageError(
                f"{directory} holds another recipe's run",
                found=f"{path} differs from recipe '{recipe.name}' in: {', '.join(differing)}",
                mend="choose another --out directory",
            )
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def export_student(
    recipe: Recipe, shop: Workshop, teacher: Teacher, hybrid: HybridForCausalLM, points: Sequence[Point], path: Path
) -> None:
    """Writes the student: the last weights, or the best that were measured."""
    if recipe.select_by == "last":
        export_checkpoint(hybrid, teacher.tokenizer, path)
        return
    best = shop.directory / best_point(points, recipe.select_by).checkpoint
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(best, path)


def run_recipe(
    recipe: Recipe,
    directory: Path,
    *,
    device: str = "cpu",
    measure: Measure | None = None,
    report_to: Sequence[str] = (),
    sharded: bool = False,
) -> dict[str, Scores]:
    """Makes `directory/student` (and `teacher`) with cards and a report; returns scores by checkpoint.

    Calling it again on the same directory continues an interrupted run. `report_to` names trackers beside the stages' own
    `metrics.jsonl` (`training.metrics.WRITERS`); `sharded` spreads the student over torchrun's processes in stages 3 (FSDP2).
    Raises UsageError when the directory belongs to another recipe, TrainingError when a stage diverges or does not find what
    the last one left.
    """
    if is_first():
        keep_recipe(recipe, directory)
    shop = Workshop(directory, device=device, measure=measure, report_to=report_to, sharded=sharded)
    teacher = shop.teacher(recipe)
    aligned = shop.align(recipe, teacher, [recipe.student.mixer])
    hybrid, selection, points = shop.distil(recipe, teacher, aligned)
    scores: dict[str, Scores] = {}
    if is_first():
        export_student(recipe, shop, teacher, hybrid, points, directory / "student")
        if measure is not None:
            scores = {"teacher": measure(teacher.path), "student": measure(directory / "student")}
            write_json(directory / "scores.json", scores)
        write_cards(recipe, directory, teacher.name, shop.tallies, selection, scores)
        write_report(recipe, directory, shop.tallies, points, scores)
    wait_for_all()
    return scores
