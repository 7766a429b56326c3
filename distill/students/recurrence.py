"""The two linear recurrences that mixers are made of, each as a loop over time and as a fast form in chunks.

    delta    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T        o_t = S_t^T q_t
    linear   S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T                                      o_t = S_t^T q_t

With a log decay per key channel (g [batch, time, heads, keys]) delta is KDA (arXiv 2510.26692) and linear GLA (2312.06635);
with one per head (g [batch, time, heads, 1]) they are Gated DeltaNet (2412.06464) and Mamba2's SSD (2405.21060).

The loops are the definition. The fast forms take their decays as differences of cumulative log decays that are masked
*before* the exponential: every exponent is <= 0, and no gate, however strong, can overflow.
Everything is float32 or float64, nothing is scaled. Knows nothing of layers, kernels or caches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = 16
"""Tokens per chunk of the fast forms; changes speed and memory, not results."""


def recurrent_linear(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `linear`.

    q, k: [batch, time, heads, keys]; v: [batch, time, heads, values]; g, <= 0: as q or [batch, time, heads, 1]; state:
    [batch, heads, keys, values]. `segments` [batch, time] numbers the documents of a row: the state is zeroed where the
    number changes; the initial state belongs to the first. Returns outputs, shaped as v, and the final state.
    """
    outputs = []
    for t in range(q.shape[1]):
        state = _decayed(state, g, segments, t)
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def recurrent_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `delta`. beta: [batch, time, heads]; everything else as in `recurrent_linear`."""
    outputs = []
    for t in range(q.shape[1]):
        state = _decayed(state, g, segments, t)
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + (beta[:, t, :, None] * k[:, t])[..., None] * error[:, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def _decayed(state: Tensor, g: Tensor, segments: Tensor | None, t: int) -> Tensor:
    """The state as token t finds it."""
    if segments is not None and t > 0:
        state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None].to(state.dtype)
    return state * g[:, t].exp()[..., None]


def chunked_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    segments: Tensor | None = None,
    *,
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent_linear`, `chunk` tokens at a time; any time length, any chunk size."""
    return _chunked(q, k, v, g, None, state, segments, chunk)


def chunked_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    segments: Tensor | None = None,
    *,
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent_delta`, `chunk` tokens at a time; any time length, any chunk size."""
    return _chunked(q, k, v, g, beta, state, segments, chunk)


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None,
    state: Tensor,
    segments: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    batch, time, heads, keys = q.shape
    values = v.shape[-1]
    padding = -time % chunk
    if segments is None:
        segments = torch.zeros((batch, time), dtype=torch.int64, device=q.device)

    def blocks(x: Tensor) -> Tensor:
        """[batch, time, heads, n] -> [batch, heads, blocks, chunk, n]."""
        x = F.pad(x, (0, 0, 0, 0, 0, padding))
        return x.view(batch, -1, chunk, heads, x.shape[-1]).permute(0, 3, 1, 2, 4)

    q, k, v, g = (blocks(x) for x in (q, k, v, g))
    segments = F.pad(segments[:, None], (0, padding), mode="replicate")[:, 0].view(batch, 1, -1, chunk)
    before = torch.cat((segments[..., :1, 0], segments[..., :-1, -1]), -1)
    same = segments[..., :, None] == segments[..., None, :]
    carried = (segments == before[..., None])[..., None].to(q.dtype)

    decay = g.cumsum(-2)
    later = torch.ones((chunk, chunk), dtype=torch.bool, device=q.device).tril()
    pairs = decay[..., :, None, :] - decay[..., None, :, :]
    weighted = pairs.masked_fill(~(same & later)[..., None], -torch.inf).exp() * k[..., None, :, :]
    from_start = decay.exp() * carried
    queries, weights = q * from_start, (weighted @ q[..., None])[..., 0]
    to_end, kept = weighted[..., -1, :, :], from_start[..., -1, :]
    if beta is None:
        solved_v, solved_k = v, None
    else:
        beta = blocks(beta[..., None])
        lower = (beta * (weighted @ k[..., None])[..., 0]).tril(-1)
        system = lower + torch.eye(chunk, dtype=q.dtype, device=q.device)
        right = torch.cat((beta * v, beta * k * from_start), -1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        solved_v, solved_k = solved.split((values, keys), -1)

    outputs = []
    for n in range(q.shape[2]):
        written = solved_v[:, :, n] if solved_k is None else solved_v[:, :, n] - solved_k[:, :, n] @ state
        outputs.append(queries[:, :, n] @ state + weights[:, :, n] @ written)
        state = kept[:, :, n, :, None] * state + to_end[:, :, n].mT @ written
    return torch.stack(outputs, 2).permute(0, 2, 3, 1, 4).reshape(batch, -1, heads, values)[:, :time], state
