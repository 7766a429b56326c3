"""Recipes as YAML files: the bundled ones by name, others by path, with `--set stage3b.objective=sft` applied.

    load_recipe("miniature", ["student.keep=0"])  ->  Recipe

A run directory keeps the resolved recipe.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from distill.recipe.settings import Recipe, StageConfig
from perplexity_lies.checked import checked
from perplexity_lies.errors import MissingError, UsageError, nearest
from perplexity_lies.files import parse_yaml, read_yaml


def build_recipe(raw: Any, where: str) -> Recipe:
    """A recipe from plain values. Raises UsageError with the place and the value of what is wrong."""
    raw = dict(raw) if isinstance(raw, dict) else raw
    if isinstance(raw, dict):
        defaults = raw.pop("defaults", {})
        if not isinstance(defaults, dict):
            raise UsageError(
                f"{where}: defaults should be a mapping", found=repr(defaults), mend="defaults: {rows: 16}"
            )
        if isinstance(raw.get("stages"), list):
            raw["stages"] = [{**defaults, **stage} if isinstance(stage, dict) else stage for stage in raw["stages"]]
            for stage in raw["stages"]:
                if isinstance(stage, dict) and type(stage.get("kind")) is int:  # YAML reads `kind: 1` as a number
                    stage["kind"] = str(stage["kind"])
    recipe = checked(Recipe, raw, where)
    return dataclasses.replace(recipe, stages=tuple(_with_steps(stage, where) for stage in recipe.stages))


def _with_steps(stage: StageConfig, where: str) -> StageConfig:
    """The stage with its budget in steps."""
    if stage.steps:
        return stage
    steps = stage.tokens // stage.tokens_per_step
    if steps < 1:
        raise UsageError(
            f"{where}: stage '{stage.name}': {stage.tokens} tokens are less than one step of {stage.tokens_per_step}",
            found=f"rows {stage.rows}, length {stage.length}",
            mend=f"--set {stage.name}.tokens={stage.tokens_per_step}",
        )
    return dataclasses.replace(stage, steps=steps, tokens=0)


def overlaid(raw: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Plain values with `KEY=VALUE` settings applied; VALUE is YAML, and `KEY=` the empty text.

    KEY is a path: `seed`, `student.mixer`, `data.chat.source`, and for stages `stage3b.objective` (by kind) or
    `instruct.objective` (by name, unless the recipe has a key of that name). `stage1=null` removes a stage,
    `teacher=CHECKPOINT` the stage `pretrain`. Raises UsageError for a setting that leads nowhere.
    """
    raw = copy.deepcopy(raw)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError("--set wants KEY=VALUE", found=setting, mend="--set stage3b.objective=sft")
        mend = f"--set '{path}=VALUE', the value in quotes of its own if it is a text"
        _set(raw, path, parse_yaml(text, f"--set {path}: the value", mend) if text.strip() else "")
    return raw


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` where `path` leads, in place."""
    first, _, rest = path.partition(".")
    given = raw["stages"] if isinstance(raw.get("stages"), list) else []
    stages = [stage for stage in given if isinstance(stage, dict)]
    fields = {f.name for f in dataclasses.fields(Recipe)}
    named = [s for s in stages if first not in fields and first in (f"stage{s.get('kind')}", s.get("name"))]
    if named and not rest and value is None:
        raw["stages"] = [stage for stage in given if stage not in named]
    elif named and rest:
        for stage in named:
            for other in {"steps": ("tokens",), "tokens": ("steps",)}.get(rest, ()):
                stage.pop(other, None)
            stage[rest] = value
    elif named and not rest:
        raise UsageError(
            f"--set {path}: a stage is changed by its keys",
            found=repr(value)[:80],
            mend=(f"--set {path}.lr=1.0e-3", f"--set {path}=null takes the stage out"),
        )
    elif first == "teacher" and not rest and isinstance(value, str):
        raw["teacher"] = value
        for stage in [stage for stage in stages if stage.get("kind") == "pretrain"]:
            given.remove(stage)
    else:
        names = [*raw, *(f"stage{s.get('kind')}" for s in stages), *(str(s.get("name")) for s in stages)]
        if first not in {*raw, "defaults", *fields}:
            raise UsageError(
                f"--set {path}: no '{first}'{nearest(first, names)}", found=", ".join(names), mend="--set KEY=VALUE"
            )
        *parents, last = path.split(".")
        target = raw
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UsageError(
                    f"--set {path}: '{parent}' is not a mapping", found=repr(target), mend=f"--set {parent}=VALUE"
                )
        target[last] = value


def read_bundled(folder: str, name: str, mend: str) -> tuple[dict[str, Any], str]:
    """Plain values of a bundled file by name or a file by path, and what to call it in messages.

    Raises MissingError when there is neither (`mend` says what to type, NAME for a name), UsageError when it is not a YAML
    mapping.
    """
    bundled = Path(str(resources.files("distill") / folder))
    names = sorted(path.stem for path in bundled.glob("*.yaml"))
    what = folder.removesuffix("s")
    path, where = (bundled / f"{name}.yaml", f"{what} '{name}'") if name in names else (Path(name), name)
    if not path.is_file():
        raise MissingError(
            f"no {what} '{name}'{nearest(name, names)}",
            found=f"bundled {folder}: {', '.join(names)}",
            mend=mend.replace("NAME", names[0]),
        )
    raw = read_yaml(path, where)
    if not isinstance(raw, dict):
        raise UsageError(f"{where} should be a mapping", found=repr(raw)[:80], mend="name: ..., one key a line")
    return raw, where


def read_recipe(name: str) -> tuple[dict[str, Any], str]:
    """Plain values of a recipe, as `read_bundled`."""
    return read_bundled("recipes", name, "plies distill run NAME --out DIR")


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path with `settings` applied (see `overlaid`)."""
    raw, where = read_recipe(name)
    return build_recipe(overlaid(raw, settings), where)
