"""Recipes as YAML files: the bundled ones by name, others by path, with `--set stage3b.objective=sft` applied.

Unknown keys are refused with the nearest known name; a run directory keeps the resolved copy. Knows nothing of torch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from distill.recipe.settings import DataConfig, Recipe, StageConfig, StudentConfig, TeacherConfig
from perplexity_lies.errors import MissingError, UsageError, nearest
from suites.miniature.stream import Mixture

SCALARS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
"""Annotations of fields that hold a bare value, and what may stand there."""


def built(cls: Any, raw: Any, where: str) -> Any:
    """A dataclass `cls` from a mapping. Raises UsageError on what is not a mapping, unknown keys and missing keys."""
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping", found=repr(raw))
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            raise UsageError(f"{where} has an unknown key '{key}'{nearest(str(key), known)}", found=", ".join(known))
    required = (
        n for n, f in known.items() if dataclasses.MISSING is f.default and dataclasses.MISSING is f.default_factory
    )
    lacking = [name for name in required if name not in raw]
    if lacking:
        raise UsageError(f"{where} lacks: {', '.join(lacking)}")
    given = {key: _scalar(value, str(known[key].type), f"{where}: {key}") for key, value in raw.items()}
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    except TypeError as error:
        raise UsageError(f"{where} has a value of the wrong type", found=str(error)) from error


def _scalar(value: Any, annotation: str, where: str) -> Any:
    """A value for a field that is annotated so; what is not a bare scalar type is left to the field's own checks.

    YAML reads `1e-5` as text (it wants `1.0e-5`): where a float is asked for, it is one. Raises UsageError for another type.
    """
    wanted = annotation.removesuffix(" | None")
    if wanted not in SCALARS or (value is None and annotation != wanted):
        return value
    if wanted == "str" and value is None:  # `--set suite=`
        return ""
    if wanted == "float" and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if not isinstance(value, SCALARS[wanted]) or (isinstance(value, bool) and wanted != "bool"):
        raise UsageError(f"{where} must be {wanted}", found=repr(value))
    return value


def _with_defaults(raw: dict[str, Any], where: str) -> list[Any]:
    """The stages, each with what `defaults` says and it does not."""
    defaults = raw.get("defaults", {})
    if not isinstance(defaults, dict):
        raise UsageError(f"{where}: defaults must be a mapping", found=repr(defaults))
    stages = [{**defaults, **stage} if isinstance(stage, dict) else stage for stage in raw["stages"]]
    # YAML reads `kind: 1` as a number.
    return [{**s, "kind": str(s["kind"])} if isinstance(s, dict) and "kind" in s else s for s in stages]


def build_recipe(raw: Any, where: str) -> Recipe:
    """A recipe from plain values. Raises UsageError saying what is wrong and where."""
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping", found=repr(raw))
    raw = dict(raw)
    if "teacher" in raw and not isinstance(raw["teacher"], str):
        raw["teacher"] = built(TeacherConfig, raw["teacher"], f"{where}: teacher")
    if "student" in raw:
        raw["student"] = built(StudentConfig, raw["student"], f"{where}: student")
    if isinstance(raw.get("data"), dict):
        sources = {}
        for name, source in raw["data"].items():
            if isinstance(source, dict) and isinstance(source.get("mixture"), dict):
                source = {**source, "mixture": built(Mixture, source["mixture"], f"{where}: data.{name}.mixture")}
            sources[name] = built(DataConfig, source, f"{where}: data.{name}")
        raw["data"] = sources
    if isinstance(raw.get("stages"), list):
        raw["stages"] = tuple(
            _with_steps(built(StageConfig, stage, f"{where}: stage number {number}"))
            for number, stage in enumerate(_with_defaults(raw, where), 1)
        )
    raw.pop("defaults", None)
    recipe: Recipe = built(Recipe, raw, where)
    return recipe


def _with_steps(stage: StageConfig) -> StageConfig:
    """The stage with its budget in steps."""
    if stage.steps:
        return stage
    steps = stage.tokens // stage.tokens_per_step
    if steps < 1:
        raise UsageError(
            f"stage '{stage.name}': {stage.tokens} tokens are less than one step of {stage.tokens_per_step}"
        )
    return dataclasses.replace(stage, steps=steps, tokens=0)


def overlaid(raw: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Plain values with `KEY=VALUE` settings applied; VALUE is YAML.

    KEY is a path: `seed`, `student.mixer`, `data.chat.source`, and for stages `stage3b.objective` (by kind) or
    `instruct.objective` (by name, where no key of the recipe is called so). `stage1=null` takes a stage out;
    `teacher=CHECKPOINT` takes `pretrain` out.
    Raises UsageError on a setting that leads nowhere.
    """
    raw = copy.deepcopy(raw)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set wants KEY=VALUE, not '{setting}'", mend="--set stage3b.objective=sft")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {path}: the value is not YAML", found=text) from error
        _set(raw, path, value)
    return raw


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    first, _, rest = path.partition(".")
    stages = raw.get("stages") or []
    fields = {f.name for f in dataclasses.fields(Recipe)}
    named = [s for s in stages if first not in fields and first in (f"stage{s.get('kind')}", s.get("name"))]
    if named and not rest and value is None:
        raw["stages"] = [stage for stage in stages if stage not in named]
    elif named and rest:
        for stage in named:
            for other in {"steps": ("tokens",), "tokens": ("steps",)}.get(rest, ()):
                stage.pop(other, None)
            stage[rest] = value
    elif first == "teacher" and not rest and isinstance(value, str):
        raw["teacher"] = value
        raw["stages"] = [stage for stage in stages if stage.get("kind") != "pretrain"]
    else:
        names = [f"stage{s.get('kind')}" for s in stages] + [str(s.get("name")) for s in stages]
        if first not in {*raw, "defaults", *fields}:
            raise UsageError(
                f"--set {path}: no '{first}'{nearest(first, [*raw, *names])}", found=", ".join([*raw, *names])
            )
        target = raw
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UsageError(f"--set {path}: '{parent}' is not a mapping", found=repr(target))
        target[last] = value


def read_bundled(folder: str, name: str, mend: str) -> tuple[dict[str, Any], str]:
    """Plain values of a bundled file by name or a file by path, and what to call it in messages.

    Raises MissingError when there is neither (`mend` says what to type, NAME for a name), UsageError when it is not a YAML
    mapping.
    """
    bundled = resources.files("distill") / folder
    names = sorted(entry.name.removesuffix(".yaml") for entry in bundled.iterdir() if entry.name.endswith(".yaml"))
    what, path = folder.removesuffix("s"), Path(name)
    if name in names:
        text, where = (bundled / f"{name}.yaml").read_text(encoding="utf-8"), f"{what} '{name}'"
    elif path.is_file():
        text, where = path.read_text(encoding="utf-8"), name
    else:
        raise MissingError(
            f"no {what} '{name}'{nearest(name, names)}",
            found=f"bundled {folder}: {', '.join(names)}",
            mend=mend.replace("NAME", names[0]),
        )
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not YAML", found=str(error)) from error
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping", found=repr(raw))
    return raw, where


def read_recipe(name: str) -> tuple[dict[str, Any], str]:
    """Plain values of a recipe, as `read_bundled`."""
    return read_bundled("recipes", name, "plies distill run NAME --out DIR")


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path with `settings` applied (see `overlaid`)."""
    raw, where = read_recipe(name)
    return build_recipe(overlaid(raw, settings), where)
