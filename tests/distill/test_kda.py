"""KDA: the layer against GenDistill's formulas written out, and its initial decay."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distill.students.base import MixerConfig
from distill.students.kda import KimiDeltaAttention

HIDDEN, HEADS, KV_HEADS, DIM = 16, 4, 2, 6


def make_layer() -> KimiDeltaAttention:
    shape = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM}
    layer = KimiDeltaAttention(MixerConfig(**shape, chunk_size=4))
    with torch.no_grad():
        for name, value in layer.initial_values().items():
            layer.get_parameter(name).copy_(value)
    return layer


@torch.no_grad()
def test_the_layer_is_the_published_one_token_by_token() -> None:
    layer, x, time = make_layer(), torch.randn(9, HIDDEN), 9
    for parameter in layer.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = F.pad(torch.cat((layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)), -1), (0, 0, 3, 0))
    states = torch.zeros(HEADS, DIM, DIM)
    expected = []
    for t in range(time):
        mixed = (inputs[t : t + 4].T * layer.conv_weight).sum(1)
        q, k, v = (part.view(-1, DIM) for part in mixed.split((HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)))
        step = F.softplus(layer.f_b(layer.f_a(x[t])) + layer.dt_bias).view(HEADS, DIM)
        beta = layer.b_proj(x[t]).sigmoid()
        heads = []
        for h in range(HEADS):
            key, value = k[h // 2] / k[h // 2].norm(), v[h // 2]
            decay = torch.diag(torch.exp(-layer.A_log[h].exp() * step[h]))
            erase = torch.eye(DIM) - beta[h] * torch.outer(key, key)
            states[h] = erase @ decay @ states[h] + beta[h] * torch.outer(key, value)
            heads.append(states[h].T @ (q[h] / q[h].norm()) * DIM**-0.5)
        expected.append(layer.o_proj(torch.cat(heads) * F.silu(layer.g_b(layer.g_a(x[t])))))
    torch.testing.assert_close(layer(x[None])[0][0], torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_initial_decay_lies_in_the_published_range() -> None:
    layer = make_layer()
    step = F.softplus(layer.dt_bias)
    assert ((step > 9e-4) & (step < 0.11)).all()
    assert ((layer.A_log.exp() >= 1) & (layer.A_log.exp() <= 16)).all()
    assert (layer.log_decay(torch.randn(1, 7, HIDDEN)) < 0).all()
