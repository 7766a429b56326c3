"""Muon for matrices beside AdamW for the rest, as one optimiser.

Muon: momentum, then five Newton-Schulz steps orthogonalise the update (K. Jordan, 2024, "Muon: an optimizer for hidden
layers"). Unlike `torch.optim.Muon` it stays in float32 (that one computes in bfloat16, which CPUs without bf16 units
emulate slowly) and treats matrices of one shape as one batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95


def orthogonalise(updates: Tensor) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrices: singular values near 1. `updates`: [n, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = updates.shape[-2] > updates.shape[-1]
    x = updates.mT if tall else updates
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(list(parameters), {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update. `closure` is not supported: ValueError unless it is None."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                    update = parameter.grad.lerp(state["momentum"], MOMENTUM)
                    by_shape.setdefault(parameter.shape, []).append((parameter, update))
            for shape, pairs in by_shape.items():
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                updates = orthogonalise(torch.stack([update for _, update in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.add_(update, alpha=-group["lr"] * scale)


def make_optimisers(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    muon_lr: float,
    adamw_lr: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> list[torch.optim.Optimizer]:
    """Muon for matrices other than embedding and head, AdamW for everything else; `muon_lr` 0 = AdamW for all.

    Weight decay applies to AdamW's matrices only, never to gains, biases, decay rates or embeddings.
    """
    matrices: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if is_matrix else plain).append(parameter)
    optimisers: list[torch.optim.Optimizer] = []
    groups: list[dict[str, Any]] = []
    if matrices and muon_lr > 0:
        optimisers.append(Muon(matrices, lr=muon_lr))
    elif matrices:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    if groups:
        optimisers.append(torch.optim.AdamW(groups, lr=adamw_lr, betas=betas, weight_decay=0.0))
    return optimisers
