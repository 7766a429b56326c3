"""The two linear recurrences of the mixers, each as a loop over time and as a fast form in chunks.

    delta    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T        o_t = S_t^T q_t
    linear   S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T                                      o_t = S_t^T q_t

With a log decay per key channel (g [batch, time, heads, keys]) delta is KDA (arXiv 2510.26692) and linear GLA (2312.06635);
with one per head (g [batch, time, heads, 1]) they are Gated DeltaNet (2412.06464) and Mamba2's SSD (2405.21060).

The loops are the definition. The fast forms cut time into chunks and join the tokens of a chunk two by two, four by four ...:
the decay between two tokens is the product of the decays to and from the border between them (GLA's secondary chunking,
applied down to single tokens). It is never above 1, so no gate can overflow and nothing is divided; a document begins where
a decay is 0. Memory is linear in time. Everything is float32 or float64; nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = 16
"""Tokens per chunk of the fast forms, rounded up to a power of two. Changes speed and memory, not results."""


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
    """The state just before token t."""
    if segments is not None and t > 0:
        state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None].to(state.dtype)
    return state * g[:, t].exp()[..., None]


def _pairs(x: Tensor, dim: int) -> Tensor:
    """Blocks along `dim`, two by two: [..., blocks, ...] -> [..., blocks / 2, 2, ...]."""
    return x.unflatten(dim, (-1, 2))


def _joined(rows: Tensor, keys: Tensor, decay: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Products of rows with every earlier key of their chunk, decayed by what lies between.

    rows: [..., chunk, n, width], n per token; keys: [..., chunk, width]; decay, in [0, 1]: as keys or [..., chunk, 1].
    Blocks of one token are joined into blocks of two, these into blocks of four, until a block is the chunk.
    Returns, for each size of the joined blocks, the products of right blocks with left ones [..., pairs, size, n, size];
    the rows, decayed from the chunk's start; the keys, decayed to its end; the chunk's whole decay [..., 1, width or 1].
    """
    total = decay[..., None, :]
    rows, keys = (rows * total)[..., None, :, :], keys[..., None, :]
    products = []
    while total.shape[-3] > 1:
        rows, keys, (left, right) = _pairs(rows, -4), _pairs(keys, -3), _pairs(total, -3).unbind(-3)
        late, early = rows[..., 1, :, :, :], keys[..., 0, :, :]
        products.append((late.flatten(-3, -2) @ early.mT).unflatten(-2, late.shape[-3:-1]))
        one = torch.ones_like(left)
        rows = (rows * torch.stack((one, left), -3)[..., None, :]).flatten(-4, -3)
        keys = (keys * torch.stack((right, one), -3)).flatten(-3, -2)
        total = left * right
    return products, rows.squeeze(-4), keys.squeeze(-3), total.squeeze(-3)


def _triangle(diagonal: Tensor, corners: list[Tensor], *, inverted: bool = False) -> Tensor:
    """The lower triangular matrix [..., chunk, chunk] of a diagonal and off-diagonal blocks, or its inverse.

    diagonal: [..., chunk], of ones for the inverse; corners: [..., pairs, size, size] for each block size.
    """
    blocks = diagonal[..., None, None]
    for corner in corners:
        upper, lower = _pairs(blocks, -3).unbind(-3)
        corner = -(lower @ corner @ upper) if inverted else corner
        blocks = torch.cat((F.pad(upper, (0, upper.shape[-1])), torch.cat((corner, lower), -1)), -2)
    return blocks.squeeze(-3)


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
    """Both recurrences: `delta` with `beta`, `linear` without. A token writes its value, minus what delta erases:

    written = v - (rows of beta * k) S - tril(beta k k^T) written,     outputs = (rows of q) S + tril(q k^T) written
    """
    batch, time, heads, _ = q.shape
    size = 1 << (min(chunk, time) - 1).bit_length()
    padding = -time % size

    def chunks(x: Tensor) -> Tensor:
        """[batch, time, heads, n] -> [batch * heads, chunks, size, n]."""
        return F.pad(x.transpose(1, 2), (0, 0, 0, padding)).reshape(batch * heads, -1, size, x.shape[-1])

    if segments is not None:
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
        g = g.masked_fill(begins[..., None, None], -torch.inf)
    q, k, v, decay = chunks(q), chunks(k), chunks(v), chunks(g).exp()
    rows = q[..., None, :]
    if beta is not None:
        beta = chunks(beta[..., None])
        rows, v = torch.stack((q, beta * k), -2), beta * v
    products, rows, keys, total = _joined(rows, k, decay)
    weights = _triangle((q * k).sum(-1), [product[..., 0, :] for product in products])
    erasing: Iterable[Tensor | None] = repeat(None)
    if beta is not None:
        ones = torch.ones_like(k[..., 0])
        erasing = _triangle(ones, [product[..., 1, :] for product in products], inverted=True).unbind(1)

    # unbind: with indexing, the backward pass would make a tensor of all chunks for each chunk
    by_chunk = [x.unbind(1) for x in (rows.flatten(2, 3), keys.mT, total.mT, v, weights)]
    outputs, state = [], state.flatten(0, 1)
    for rows_n, keys_n, total_n, written, weights_n, erasing_n in zip(*by_chunk, erasing, strict=False):
        reads = (rows_n @ state).unflatten(1, (size, -1)).unbind(2)
        if erasing_n is not None:
            written = erasing_n @ (written - reads[1])
        outputs.append(torch.baddbmm(reads[0], weights_n, written))
        state = torch.baddbmm(total_n * state, keys_n, written)
    out, state = (x.unflatten(0, (batch, heads)) for x in (torch.cat(outputs, 1), state))
    return out[:, :, :time].transpose(1, 2), state


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
    """`recurrent_linear` computed `chunk` tokens at a time; any time length."""
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
    """`recurrent_delta` computed `chunk` tokens at a time; any time length."""
    return _chunked(q, k, v, g, beta, state, segments, chunk)
