"""One optimiser step over several processes: each takes its share of the rows, gradients are summed.

`torchrun` starts the processes, on one machine or many; its environment (RANK, WORLD_SIZE, LOCAL_RANK) numbers them. Every
process makes the same global batch, so the weight that divides a loss needs no exchange, and the sum of gradients is the
gradient. By default every process holds the whole model (as DDP does); `shard` spreads weights and optimiser states with
FSDP2. Without torchrun everything here is a no-op.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from distill.data import Batch
from perplexity_lies.errors import UsageError


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Joins torchrun's processes if this is one of them, leaves them at the end; yields this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # The others wait while the first process measures, for longer than the ten minutes that NCCL would.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=1))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return world()[0] == 0


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def own_rows(batch: Batch) -> Batch:
    """This process's rows of a global batch. Raises UsageError when they cannot be dealt out evenly."""
    number, count = world()
    rows = len(batch.input_ids)
    if rows % count:
        raise UsageError(
            f"{rows} rows cannot be shared by {count} processes",
            found=f"{rows % count} rows left over",
            mend=f"--set defaults.rows={rows - rows % count or count}",
        )
    return batch.rows(number * rows // count, (number + 1) * rows // count)


def added_up(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums gradients over all processes; FSDP2 has already done so for sharded parameters."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            added_up(parameter.grad)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(model: PreTrainedModel) -> None:
    """Spreads a model over all processes in place (FSDP2), layer by layer; gradients are summed, not averaged.

    Every process must hold the same weights before. Only stages 3 can run on it: stages 1 and 2 call mixers by themselves.
    """
    mesh = init_device_mesh(model.device.type, (world()[1],))
    head, inner = model.get_output_embeddings(), model.model
    tied = head.weight is model.get_input_embeddings().weight
    # By default the root stays whole after a pass without gradients, and an optimiser would then hold the wrong tensors.
    always: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    for layer in inner.layers:
        fully_shard(layer, **always)
    fully_shard(inner, **always)
    if tied:
        head.weight = model.get_input_embeddings().weight
    else:
        fully_shard(head, **always)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
