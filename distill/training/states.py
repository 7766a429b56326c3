"""Saved states of a stage: written whole or not at all, the last few kept, read back where training goes on.

A state holds weights, optimisers, torch's generator and the tally. A sharded model (`distributed.shard`) is gathered and
written by the first process; any number of processes can go on from it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel

from distill.recipe.settings import StageConfig
from distill.training.distributed import is_first, is_sharded, wait_for_all
from perplexity_lies.errors import UsageError

STATE_FILES = "state-*.pt"
WITHOUT_EFFECT = ("micro_rows", "checkpoint_activations", "save_every", "keep_last", "measure_every")
"""Settings that may change between a kill and the next start: what is learnt does not depend on them."""


def save_whole(path: Path, content: Any) -> None:
    """`torch.save`, so that a reader finds the old file or the new one, never half of one; nothing is copied in memory."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def saved_states(directory: Path) -> list[Path]:
    """Files of saved states, oldest first."""
    return sorted(directory.glob(STATE_FILES), key=lambda path: int(path.stem.partition("-")[2]))


def gathered(model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Weights and optimiser states; those of a sharded model on the first process alone."""
    if not is_sharded(model):
        return {"model": model.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in optimisers]}
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "model": get_model_state_dict(model, options=whole),
        "optimisers": [get_optimizer_state_dict(model, optimiser, options=whole) for optimiser in optimisers],
    }


def whole(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or an unsharded copy of a sharded one, which the first process alone may use."""
    if not is_sharded(model):
        return model
    weights = gathered(model, [])["model"]
    if not is_first():
        return model
    copy = type(model)(model.config)
    copy.load_state_dict(weights)
    return copy.to(model.device)


def put_back(model: nn.Module, optimisers: list[torch.optim.Optimizer], state: dict[str, Any]) -> None:
    """Inverse of `gathered`, in place."""
    if not is_sharded(model):
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=whole)
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        set_optimizer_state_dict(model, optimiser, saved, options=whole)


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """A stage's settings without those that do not change what is learnt."""
    return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}


def restored(
    directory: Path, stage: StageConfig, model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Puts the newest state back and returns its tally, or None where there is none.

    Raises UsageError when it was made by a stage with other settings.
    """
    states = saved_states(directory)
    if not states:
        return None
    state = torch.load(states[-1], weights_only=True, map_location="cpu")
    if decisive(state["stage"]) != decisive(dataclasses.asdict(stage)):
        raise UsageError(
            f"{directory} holds stage '{stage.name}' made with other settings",
            found="its settings differ from the recipe's",
            mend="choose another --out directory, or delete this one",
        )
    put_back(model, optimisers, state)
    torch.set_rng_state(state["rng"])
    tally: dict[str, Any] = state["tally"]
    return tally


def save_state(
    directory: Path,
    stage: StageConfig,
    model: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    tally: dict[str, Any],
) -> None:
    """Writes the state after `tally["step"]` steps and removes those older than the last `stage.keep_last`."""
    state = gathered(model, optimisers)
    if is_first():
        state |= {"stage": dataclasses.asdict(stage), "rng": torch.get_rng_state(), "tally": tally}
        save_whole(directory / f"state-{tally['step']}.pt", state)
        for old in saved_states(directory)[: -stage.keep_last]:
            old.unlink()
    wait_for_all()
