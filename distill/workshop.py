"""One directory of stages: runs them, keeps what each left, and goes on from there.

    shop = Workshop(directory, device="cpu")
    teacher = shop.teacher(recipe)
    aligned = shop.align(recipe, teacher, ["kda"])        stages 1, 2: every layer a mixer
    hybrid = shop.assemble(recipe, teacher, aligned)      layers chosen, the teacher's attention put back there
    student = shop.distil(recipe, teacher, hybrid)        stages 3a, 3b

Every stage keeps its state in a directory named after everything that led to it: the same call after a kill goes on where
it was, and recipes that begin alike share what they have in common (`distill.ablate`). The student is made from the
teacher *as exported* (rounded to bfloat16), the one that everybody else can load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data import Batch, Stream, open_documents
from distill.export import export_checkpoint, load_exported
from distill.miniature.teacher import new_teacher
from distill.miniature.tokenizer import build_tokenizer
from distill.recipe.settings import Recipe, StageConfig, StudentConfig, TeacherConfig
from distill.selection import Candidates, Selection, find_selector
from distill.students.convert import assembled, attention_layers, new_student
from distill.students.hybrid import HybridForCausalLM
from distill.training.distributed import is_first, shard, wait_for_all
from distill.training.stages import StageLoss, loss_in, mean_kl, trainable_in
from distill.training.states import decisive, whole
from distill.training.train import Tally, closing_loss, opening_check, train
from perplexity_lies.checked import Checked, checked
from perplexity_lies.checkpoint.lookup import resolve
from perplexity_lies.digests import canonical_json, short_key, without_defaults
from perplexity_lies.errors import UsageError
from perplexity_lies.files import read_json, write_whole
from perplexity_lies.progress import Reporter
from suites.miniature.catalogue import all_items
from suites.miniature.world import vocabulary

HELD_SEED = 999_983
"""Data seed of `held_batches`, on which layer sets and checkpoints are scored and stages checked; no stage trains with it."""
MADE_BY_STAGES_3 = ("mixer", "keep", "selector", "selection_batches")
"""Settings of a student that stages 1 and 2 do not depend on; the mixer stands in their key by itself."""

Watch = Callable[[str, str, int, int], None]
"""Called with a stage's name, the key of what led here, the step, and the tokens that stages 3 have seen so far."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A loaded teacher, frozen."""

    name: str
    path: Path
    digest: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Aligned:
    """All-mixer students after stages 1 and 2, by mixer."""

    students: dict[str, HybridForCausalLM]
    key: str
    """Key of everything that led here."""


@dataclass(frozen=True, slots=True)
class Hybrid:
    """A student with the teacher's attention in the layers that were chosen, before stages 3."""

    model: HybridForCausalLM
    selection: Selection
    key: str
    """Key of everything that led here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSelection(Checked):
    """A selection as it lies on the disk."""

    selection: Selection
    kl_nats: float
    """KL(teacher || student) of the student that it makes, nats per token: it must come out again."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How a stage ended: what the next one must find."""

    loss: StageLoss
    batch: Batch
    rows: int
    """Rows per forward pass; 0 = whole batch."""
    value: float

    def check(self) -> None:
        """Raises TrainingError when the model is not what the stage left."""
        opening_check(self.value, self.loss.value(self.batch, self.rows))


def mixer_name(mixer: str | tuple[str, ...]) -> str:
    """One word for a student's mixers: `kda`, `kda-gla-kda-gla`."""
    return mixer if isinstance(mixer, str) else "-".join(mixer)


def alignment_settings(student: StudentConfig) -> dict[str, Any]:
    """The settings that stages 1 and 2 depend on, the mixer apart; those at their default left out."""
    return {name: value for name, value in without_defaults(student).items() if name not in MADE_BY_STAGES_3}


class Workshop:
    """Stages in one directory, and what they share: device, documents, trackers."""

    def __init__(
        self, directory: Path, *, device: str = "cpu", report_to: Sequence[str] = (), sharded: bool = False
    ) -> None:
        self.directory, self.device, self.report_to, self.sharded = directory, device, report_to, sharded
        self.stages = directory / "stages"
        self.tallies: dict[str, Tally] = {}
        self.held_out = frozenset(item.question for items in all_items().values() for item in items)

    def stream(
        self, recipe: Recipe, stage: StageConfig, tokenizer: PreTrainedTokenizerBase, seed: int | None = None
    ) -> Stream:
        """The documents of a stage, packed; `seed` replaces the stage's own."""
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
        watch: Callable[[str, Tally], None] | None = None,
    ) -> tuple[str, Closing]:
        """Trains `model` through a stage; returns the key of what came out and how it closed.

        `before` is the key of what led here; `watch` is called with the new key and the tally where measuring is due.
        Raises TrainingError when the model is not what `previous` left, or when the stage diverges.
        """
        if previous is not None:
            previous.check()
        sources = [stage.data] if isinstance(stage.data, str) else list(stage.data)
        used = [without_defaults(recipe.data[name]) for name in sources]
        key = short_key([before, decisive(without_defaults(stage)), used])
        directory = self.stages / f"{stage.name}-{key}"
        self.tallies[stage.name] = train(
            stage,
            model,
            trainable_in(stage),
            loss,
            self.stream(recipe, stage, tokenizer),
            directory,
            device=self.device,
            on_measure=None if watch is None else lambda tally: watch(key, tally),
            report_to=self.report_to,
        )
        batch = self.stream(recipe, stage, tokenizer, HELD_SEED).batch(0).to(self.device)
        return key, Closing(loss, batch, stage.micro_rows, closing_loss(directory, loss, batch, stage.micro_rows))

    def teacher(self, recipe: Recipe) -> Teacher:
        """The recipe's teacher: trained here, or loaded from where it is.

        Raises MissingError or CheckpointError when it is nowhere or broken.
        """
        if isinstance(recipe.teacher, TeacherConfig):
            path = self._new_teacher(recipe, recipe.teacher)
            name = str(path)
        else:
            name, files = recipe.teacher, resolve(recipe.teacher).path
            if files is None:
                raise UsageError(
                    "a teacher is a checkpoint's files, not a server's address",
                    found=name,
                    mend="--teacher DIRECTORY, a hub name or builtin:teacher",
                )
            path = files
        found = resolve(str(path))
        model, tokenizer = load_exported(path)
        return Teacher(name, path, found.digest, model.to(self.device).requires_grad_(False), tokenizer)

    def _new_teacher(self, recipe: Recipe, shape: TeacherConfig) -> Path:
        """Trains a teacher from scratch and exports it; returns its directory."""
        tokenizer = build_tokenizer(vocabulary())
        model = new_teacher(shape, tokenizer, recipe.seed).to(self.device)
        key = short_key([without_defaults(shape), recipe.seed])
        for stage in recipe.stages:
            if stage.kind == "pretrain":
                key, _ = self.run_stage(recipe, stage, key, tokenizer, model, loss_in(stage, model, model))
        path = self.directory / "teacher"
        if is_first():
            export_checkpoint(model, tokenizer, path)
        wait_for_all()
        return path

    def align(self, recipe: Recipe, teacher: Teacher, mixers: Sequence[str | tuple[str, ...]]) -> Aligned:
        """Stages 1 and 2 for several mixers in the same teacher passes; none of them touches another."""
        students: dict[str, HybridForCausalLM] = {}
        for mixer in mixers:
            config = dataclasses.replace(recipe.student, mixer=mixer)
            students[mixer_name(mixer)] = new_student(teacher.model, recipe.seed, config).to(self.device)
        together = nn.ModuleDict(students)
        key = short_key([teacher.digest, recipe.seed, sorted(students), alignment_settings(recipe.student)])
        closing = None
        for stage in recipe.stages:
            if stage.kind in ("1", "2"):
                loss = loss_in(stage, teacher.model, together)
                key, closing = self.run_stage(recipe, stage, key, teacher.tokenizer, together, loss, closing)
        if closing is not None:
            closing.check()
        return Aligned(students, key)

    def held_batches(self, recipe: Recipe, teacher: Teacher) -> list[Batch]:
        """Completions of the last stage's kind, to score a student on, in its micro-batches.

        The miniature world gives documents that no stage trains on; files and datasets those of that stage in another order.
        """
        stage = dataclasses.replace(recipe.stages[-1], prompt_weight=0.0)
        stream, position = self.stream(recipe, stage, teacher.tokenizer, HELD_SEED), 0
        batches: list[Batch] = []
        for _ in range(recipe.student.selection_batches):
            batch = stream.batch(position).to(self.device)
            batches += batch.parts(stage.micro_rows)
            position = batch.next_position
        return batches

    def kl(self, recipe: Recipe, teacher: Teacher, student: PreTrainedModel) -> float:
        """Mean KL(teacher || student) on `held_batches`, nats per token."""
        return mean_kl(teacher.model, student, self.held_batches(recipe, teacher))

    def select(self, recipe: Recipe, teacher: Teacher, aligned: Aligned) -> Selection:
        """Which layers keep attention: as the recipe names them, or as its selector chooses.

        A choice is kept in `stages/selection-KEY.json` with the KL of the student that it makes, which must come out again.
        Raises UsageError when the recipe names layers that the teacher does not have, TrainingError when the hybrid is not
        what the selector saw.
        """
        student, named = recipe.student, attention_layers(recipe.student, teacher.model.config.num_hidden_layers)
        if isinstance(named, tuple):
            return Selection(kept=named)
        led_here = [aligned.key, mixer_name(student.mixer), named, student.selection_batches]
        if "selector" in without_defaults(student):
            led_here.append(student.selector)
        path = self.stages / f"selection-{short_key(led_here)}.json"
        mixed, batches = aligned.students[mixer_name(student.mixer)], self.held_batches(recipe, teacher)

        @cache
        def kl_of(layers: tuple[int, ...]) -> float:
            return mean_kl(teacher.model, assembled(teacher.model, mixed, layers).to(self.device), batches)

        known = path.exists()
        wait_for_all()  # all must agree on it before one of them writes
        if known:
            mend = f"delete {path}: it will be made again"
            kept = checked(KeptSelection, read_json(path, f"{path} is not a selection", mend), str(path), mend)
            opening_check(kept.kl_nats, kl_of(kept.selection.kept))
            return kept.selection
        candidates = Candidates(layers=teacher.model.config.num_hidden_layers, keep=named, kl_of=kl_of)
        selection = find_selector(student.selector)(candidates)
        kept = KeptSelection(selection=selection, kl_nats=kl_of(selection.kept))
        if is_first():
            write_whole(path, canonical_json(dataclasses.asdict(kept)) + "\n")
        return selection

    def assemble(self, recipe: Recipe, teacher: Teacher, aligned: Aligned) -> Hybrid:
        """The student with the teacher's attention in the layers that are chosen. Raises what `select` raises."""
        name = mixer_name(recipe.student.mixer)
        selection = self.select(recipe, teacher, aligned)
        model = assembled(teacher.model, aligned.students[name], selection.kept).to(self.device)
        if self.sharded:
            shard(model)
        return Hybrid(model, selection, short_key([aligned.key, name, selection.kept]))

    def distil(self, recipe: Recipe, teacher: Teacher, hybrid: Hybrid, watch: Watch | None = None) -> PreTrainedModel:
        """Stages 3 on the hybrid's model; returns it, whole on the first process where it was sharded.

        `watch` is called before the first stage (as stage `aligned`) and wherever a stage's measuring is due.
        Raises TrainingError when a stage diverges or does not find what the last one left.
        """
        key, closing, seen = hybrid.key, None, 0
        if watch is not None:
            watch("aligned", key, 0, 0)
        for stage in recipe.stages:
            if stage.kind.startswith("3"):
                loss = loss_in(stage, teacher.model, hybrid.model)
                told = None if watch is None else _stage_watch(watch, stage.name, seen)
                key, closing = self.run_stage(recipe, stage, key, teacher.tokenizer, hybrid.model, loss, closing, told)
                seen += self.tallies[stage.name].tokens
        return whole(hybrid.model)


def _stage_watch(watch: Watch, stage: str, seen: int) -> Callable[[str, Tally], None]:
    """`watch` for one stage, before which stages 3 had seen `seen` tokens."""
    return lambda key, tally: watch(stage, key, tally.step, seen + tally.tokens)
