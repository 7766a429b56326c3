"""A recipe from beginning to end: teacher, layer selection, student, checkpoints, cards.

    stages pretrain -> teacher/ -> stages 1, 2 (all KDA) -> selection -> stages 3a, 3b (hybrid) -> student/

The student is made from the teacher *as exported* (rounded to bfloat16), the one that everybody else can load. Every
stage keeps its state in `stages/`; the same call after a kill goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from distill.cards import write_cards
from distill.data import Encoder, Tokens, pack
from distill.export import export_checkpoint, load_exported
from distill.measure import TaskScores, measure_task
from distill.recipe import Recipe, StageConfig
from distill.selection import Selection, select_layers
from distill.stages import assembled, distillation_loss, loss_in, new_student, trainable_in
from distill.teacher import new_teacher
from distill.tokenizer import build_tokenizer
from distill.train import Stream, Tally, train
from perplexity_lies.errors import UsageError
from suites.miniature.catalogue import TASKS, all_items
from suites.miniature.stream import Mixture, make_document
from suites.miniature.world import Item, make_world, vocabulary

SELECTION_SEED = 999_983
"""Stream seed of the documents on which layer sets are scored."""


class Workshop:
    """What the stages of one recipe share: the world, the tokenizer, the items held out, the directory."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe, self.directory = recipe, directory
        self.world = make_world()
        self.items: dict[str, list[Item]] = all_items()
        self.held_out = frozenset(item.question for items in self.items.values() for item in items)
        self.tokenizer: PreTrainedTokenizerBase = build_tokenizer(vocabulary())
        self.encoder = Encoder(self.tokenizer)
        self.tallies: dict[str, Tally] = {}

    def fetch(self, mixture: Mixture, seed: int) -> Callable[[int], Tokens]:
        """Documents of a stream as tokens, by number."""
        return lambda index: self.encoder.document(make_document(self.world, mixture, seed, index, self.held_out))

    def run_stages(self, kinds: tuple[str, ...], teacher: Any, student: Any) -> None:
        """Trains through the recipe's stages of these kinds, in order."""
        recipe = self.recipe
        for stage in recipe.stages:
            if stage.kind in kinds:
                self.tallies[stage.name] = self._run_stage(stage, teacher, student)

    def _run_stage(self, stage: StageConfig, teacher: Any, student: Any) -> Tally:
        fetch = self.fetch(self.recipe.streams[stage.stream], stage.stream_seed)
        stream = Stream(fetch, self.recipe.rows, self.recipe.length, self.encoder.pad_id)
        model = teacher if stage.kind == "pretrain" else student
        loss_of = loss_in(stage.kind, teacher, student)
        return train(stage, model, trainable_in(stage.kind), loss_of, stream, self.directory / "stages" / stage.name)

    def select(self, teacher: Any, student: Any) -> Selection:
        """Which layers keep attention: KL on batches of the 3b stream that no stage trains on."""
        recipe = self.recipe
        mixture = next(recipe.streams[stage.stream] for stage in recipe.stages if stage.kind == "3b")
        fetch, batches, position = self.fetch(mixture, SELECTION_SEED), [], 0
        for _ in range(recipe.student.selection_batches):
            batch = pack(
                fetch, position, rows=recipe.rows, length=recipe.length, prompt_weight=0.0, pad_id=self.encoder.pad_id
            )
            batches.append(batch)
            position = batch.next_position

        @torch.no_grad()
        def kl_of(kept: tuple[int, ...]) -> float:
            hybrid = assembled(teacher, student, kept)
            return sum(distillation_loss(teacher, hybrid, batch).item() for batch in batches) / len(batches)

        return select_layers(kl_of, teacher.config.num_hidden_layers, recipe.student.keep)

    def measure(self, name: str) -> dict[str, TaskScores]:
        """Scores of an exported checkpoint on every task."""
        model, tokenizer = load_exported(self.directory / name)
        return {task: measure_task(model, tokenizer, self.items[task], settings) for task, settings in TASKS.items()}


def keep_recipe(recipe: Recipe, directory: Path) -> None:
    """Writes the resolved recipe into its directory. Raises UsageError when another recipe was run there."""
    path = directory / "recipe.yaml"
    text = yaml.safe_dump(json.loads(json.dumps(recipe.to_dict())), sort_keys=False)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"{directory} holds another recipe's run",
            found=f"{path} differs from recipe '{recipe.name}'",
            mend="choose another --out directory",
        )
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def run_recipe(recipe: Recipe, directory: Path) -> dict[str, dict[str, TaskScores]]:
    """Makes `directory/teacher` and `directory/student` with their cards; returns scores by checkpoint and task.

    Calling it again on the same directory continues an interrupted run. Raises UsageError when the directory belongs to
    another recipe, TrainingError when a stage diverges.
    """
    keep_recipe(recipe, directory)
    shop = Workshop(recipe, directory)
    raw_teacher = new_teacher(recipe.teacher, shop.tokenizer, recipe.seed)
    shop.run_stages(("pretrain",), raw_teacher, None)
    export_checkpoint(raw_teacher, shop.tokenizer, directory / "teacher")
    teacher, _ = load_exported(directory / "teacher")

    student = new_student(teacher, recipe.seed, query_scale=recipe.student.query_scale, chunk_size=recipe.student.chunk_size)
    shop.run_stages(("1", "2"), teacher, student)
    selection = shop.select(teacher, student)
    hybrid = assembled(teacher, student, selection.kept)
    shop.run_stages(("3a", "3b"), teacher, hybrid)
    export_checkpoint(hybrid, shop.tokenizer, directory / "student")

    scores = {name: shop.measure(name) for name in ("teacher", "student")}
    table = {name: {task: dataclasses.asdict(s) for task, s in tasks.items()} for name, tasks in scores.items()}
    (directory / "scores.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    write_cards(recipe, directory, shop.tallies, selection, scores)
    return scores
