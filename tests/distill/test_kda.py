"""KDA: documents kept apart, padding, token by token, the identity start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distill.students.kda import (
    CONV_SIZE,
    SILU_ONE,
    KDAState,
    KimiDeltaAttention,
    causal_convolution,
)


def make_layer(chunk: int = 4) -> KimiDeltaAttention:
    layer = KimiDeltaAttention(16, heads=4, kv_heads=2, head_dim=6, scale=1.0, chunk=chunk)
    with torch.no_grad():
        for name, value in layer.initial_values().items():
            layer.get_parameter(name).copy_(value)
    return layer


def test_gate_starts_as_the_identity() -> None:
    assert F.silu(torch.tensor(SILU_ONE, dtype=torch.float64)).item() == pytest.approx(1.0, abs=1e-15)
    layer = make_layer()
    gate = F.silu(layer.g_b(layer.g_a(torch.randn(3, 5, 16))))
    torch.testing.assert_close(gate, torch.ones_like(gate), rtol=0, atol=1e-6)


def test_convolution_starts_as_the_identity_and_then_convolves() -> None:
    layer, x = make_layer(), torch.randn(2, 9, 48)
    past = torch.randn(2, 48, CONV_SIZE - 1)
    assert torch.equal(causal_convolution(x, layer.conv_weight, past, None), x)
    weight = torch.randn(48, CONV_SIZE)
    padded = torch.cat((past, x.mT), -1)
    expected = F.conv1d(padded, weight[:, None], groups=48).mT
    torch.testing.assert_close(causal_convolution(x, weight, past, None), expected)


def test_initial_decay_lies_in_the_published_range() -> None:
    layer = make_layer()
    step = F.softplus(layer.dt_bias)
    assert ((step > 9e-4) & (step < 0.11)).all()
    assert ((layer.A_log.exp() >= 1) & (layer.A_log.exp() <= 16)).all()
    assert (layer.log_decay(torch.randn(1, 7, 16)) < 0).all()


def test_documents_in_a_row_do_not_see_each_other() -> None:
    layer = make_layer()
    torch.nn.init.normal_(layer.conv_weight)
    a, b = torch.randn(1, 5, 16), torch.randn(1, 8, 16)
    segments = torch.tensor([[0] * 5 + [1] * 8])
    packed, _ = layer(torch.cat((a, b), 1), segments=segments)
    torch.testing.assert_close(packed, torch.cat((layer(a)[0], layer(b)[0]), 1))
    leaky, _ = layer(torch.cat((a, b), 1))
    assert not torch.allclose(leaky[:, 5:], packed[:, 5:], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_token_by_token_equals_all_at_once(chunk: int) -> None:
    layer, x = make_layer(chunk), torch.randn(2, 11, 16)
    torch.nn.init.normal_(layer.conv_weight)
    whole, end = layer(x)
    state: KDAState | None = None
    steps = []
    for t in range(11):
        out, state = layer(x[:, t : t + 1], state=state)
        steps.append(out)
    assert state is not None
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    torch.testing.assert_close(state.conv, end.conv)
    torch.testing.assert_close(state.recurrent, end.recurrent)


@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 1, 1], [1] * 7])
def test_padding_anywhere_changes_nothing(mask: list[int]) -> None:
    layer = make_layer()
    torch.nn.init.normal_(layer.conv_weight)
    real = torch.tensor([mask, [1] * 7]).bool()
    x, start = torch.randn(2, 7, 16), layer(torch.randn(2, 3, 16))[1]
    out, state = layer(x, state=start, real=real)
    for row in range(2):
        before = KDAState(start.conv[row : row + 1], start.recurrent[row : row + 1])
        alone, end = layer(x[row : row + 1, real[row]], state=before)
        torch.testing.assert_close(out[row, real[row]], alone[0])
        torch.testing.assert_close(state.conv[row], end.conv[0])
        torch.testing.assert_close(state.recurrent[row], end.recurrent[0])
    assert (out[~real] == 0).all()


def test_padding_and_packing_together_are_refused() -> None:
    x = torch.randn(1, 4, 16)
    with pytest.raises(ValueError, match="without an attention mask"):
        make_layer()(x, segments=torch.zeros(1, 4), real=torch.ones(1, 4).bool())


def test_query_heads_share_key_value_heads_in_neighbouring_pairs() -> None:
    layer, x = make_layer(), torch.randn(1, 6, 16)
    changed = make_layer()
    changed.load_state_dict(layer.state_dict())
    with torch.no_grad():
        changed.v_proj.weight[6:] += 1.0
        for each in (layer, changed):
            each.o_proj = torch.nn.Identity()
    moved = (layer(x)[0] - changed(x)[0]).view(6, 4, 6).abs().amax((0, 2))
    assert (moved[:2] == 0).all() and (moved[2:] > 1e-4).all()
