"""What every mixer must do: the fast form as the definition, documents apart, padding unseen, state carried, open gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from distill.students.base import CONV_SIZE, GATES, SILU_ONE, Mixer, MixerConfig, RecurrentMixer, causal_convolution
from distill.students.hybrid import MIXERS, HybridConfig, mixer_class
from distill.students.swa import SlidingWindowAttention, WindowState

HIDDEN, HEADS, KV_HEADS, DIM = 16, 4, 2, 6
WINDOW, SINKS = 4, 2
RECURRENT = [name for name in MIXERS if issubclass(mixer_class(name), RecurrentMixer)]
MakeMixer = Callable[..., Any]


def make_config(**switches: Any) -> MixerConfig:
    shape = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": DIM,
        "chunk_size": 4,
        "sliding_window": WINDOW,
        "attention_sinks": SINKS,
    }
    return MixerConfig(**{**shape, **switches})


def make_mixer(name: str, started: bool = False, **switches: Any) -> Any:
    """A mixer with weights far from their starting values, or, `started`, at them."""
    mixer = mixer_class(name)(make_config(**switches))
    with torch.no_grad():
        for part, value in mixer.initial_values().items():
            mixer.get_parameter(part).copy_(value)
        for parameter in mixer.parameters():
            if not started:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return mixer


def run(mixer: Mixer, x: Tensor, positions: Tensor | None = None, **given: Any) -> tuple[Tensor, Any]:
    """The mixer with the rotary positions of `positions` [batch, time]; from 0 where they are not given."""
    positions = torch.arange(x.shape[1])[None] if positions is None else positions
    rotary = Qwen3RotaryEmbedding(make_config())
    return mixer(x, position_embeddings=rotary(x, positions), **given)


def parts(state: Any) -> list[Tensor]:
    return [getattr(state, field.name) for field in dataclasses.fields(state)]


def assert_same_state(one: Any, other: Any) -> None:
    """Equal in all that counts: slots of a window that no token has filled may hold anything."""
    if isinstance(one, WindowState):
        assert torch.equal(one.seen, other.seen)
        sinks, window = torch.arange(SINKS), torch.arange(WINDOW) + one.seen - WINDOW
        filled = torch.cat((sinks < one.seen, window >= SINKS), 1)[:, None, :, None]
        one, other = (WindowState(s.keys * filled, s.values * filled, s.seen) for s in (one, other))
    for mine, theirs in zip(parts(one), parts(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def packed_lengths(*lengths: int) -> tuple[Tensor, Tensor]:
    """Segments and positions of documents in one row."""
    segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    return segments, torch.cat([torch.arange(n) for n in lengths])[None]


@pytest.fixture(params=sorted(MIXERS))
def name(request: pytest.FixtureRequest) -> str:
    """Each mixer in turn."""
    return str(request.param)


@pytest.mark.parametrize("case", ["plain", "packed", "padded"])
@pytest.mark.parametrize("carried", [False, True])
def test_fast_equals_the_definition_in_values_and_gradients(name: str, case: str, carried: bool) -> None:
    mixer, x = make_mixer(name), torch.randn(2, 11, HIDDEN, requires_grad=True)
    given: dict[str, Any] = {"state": run(mixer, torch.randn(2, 7, HIDDEN))[1] if carried else None}
    if case == "packed":
        given["segments"] = torch.tensor([[0] * 3 + [1] * 8, [0] * 10 + [1]])
    if case == "padded":
        given["real"] = torch.tensor([[0, 0] + [1] * 9, [1] * 11]).bool()
    results = []
    for naive in (True, False):
        mixer.naive = naive
        out, state = run(mixer, x, **given)
        probe = torch.linspace(-1, 1, out.numel()).view_as(out)
        loss = (out * probe).sum()
        if isinstance(mixer, RecurrentMixer):
            loss = loss + state.recurrent.square().sum()
        gradients = torch.autograd.grad(loss, [x, *mixer.parameters()], retain_graph=True)
        results.append((out, state, gradients))
    (slow, slow_state, slow_gradients), (fast, fast_state, fast_gradients) = results
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert_same_state(fast_state, slow_state)
    for one, other in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_documents_in_a_row_do_not_see_each_other(name: str) -> None:
    mixer, (segments, positions) = make_mixer(name), packed_lengths(5, 1, 9)
    x = torch.randn(1, 15, HIDDEN)
    packed, end = run(mixer, x, positions, segments=segments)
    alone = [run(mixer, document) for document in x.split([5, 1, 9], 1)]
    torch.testing.assert_close(packed, torch.cat([out for out, _ in alone], 1), rtol=1e-5, atol=1e-5)
    leaky, _ = run(mixer, x, positions)
    assert not torch.allclose(leaky[:, 5:], packed[:, 5:], atol=1e-3)
    if isinstance(end, WindowState):
        assert_same_state(end, alone[-1][1])


@pytest.mark.parametrize("strides", [[1] * 13, [6] + [1] * 7, [4, 5, 1, 3]])
def test_in_pieces_equals_all_at_once(name: str, strides: list[int]) -> None:
    mixer, x = make_mixer(name), 0.3 * torch.randn(2, 13, HIDDEN)
    whole, end = run(mixer, x)
    state, pieces = None, []
    for piece, places in zip(x.split(strides, 1), torch.arange(13)[None].split(strides, 1), strict=True):
        out, state = run(mixer, piece, places, state=state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)
    assert_same_state(state, end)


@pytest.mark.parametrize(
    "mask", [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 1, 1], [1] * 7, [0] * 7]
)
@pytest.mark.parametrize("naive", [False, True])
def test_padding_anywhere_changes_nothing(name: str, mask: list[int], naive: bool) -> None:
    mixer, real = make_mixer(name), torch.tensor([mask, [1] * 7]).bool()
    mixer.naive = naive
    x, start = torch.randn(2, 7, HIDDEN), run(mixer, torch.randn(2, 5, HIDDEN))[1]
    positions = real.cumsum(1) + 4
    out, state = run(mixer, x, positions, state=start, real=real)
    assert (out[~real] == 0).all()
    for row in range(2):
        only = dataclasses.replace(
            start, **{f.name: getattr(start, f.name)[row : row + 1] for f in dataclasses.fields(start)}
        )
        end = only
        if real[row].any():
            alone, end = run(mixer, x[row : row + 1, real[row]], positions[row : row + 1, real[row]], state=only)
            torch.testing.assert_close(out[row, real[row]], alone[0], rtol=1e-4, atol=1e-5)
        mine = dataclasses.replace(
            state, **{f.name: getattr(state, f.name)[row : row + 1] for f in dataclasses.fields(state)}
        )
        assert_same_state(mine, end)


def test_padding_and_packing_together_are_refused(name: str) -> None:
    x = torch.randn(1, 4, HIDDEN)
    with pytest.raises(ValueError, match="without an attention mask"):
        run(make_mixer(name), x, segments=torch.zeros(1, 4), real=torch.ones(1, 4).bool())


def test_query_heads_share_key_value_heads_in_neighbouring_pairs(name: str) -> None:
    mixer, x = make_mixer(name), torch.randn(1, 6, HIDDEN)
    changed = make_mixer(name)
    changed.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        changed.v_proj.weight[DIM:] += 1.0
    for each in (mixer, changed):
        each.o_proj = torch.nn.Identity()
    moved = (run(mixer, x)[0] - run(changed, x)[0]).view(6, HEADS, DIM).abs().amax((0, 2))
    assert (moved[:2] == 0).all() and (moved[2:] > 1e-4).all()


def test_extreme_gates_stay_finite(name: str) -> None:
    mixer, x = make_mixer(name), 30 * torch.randn(2, 21, HIDDEN)
    with torch.no_grad():
        for part, parameter in mixer.named_parameters():
            if part.startswith(("f_", "gk_", "a_proj", "dt_proj", "b_proj")):
                parameter.mul_(30)
    out, _ = run(mixer, x)
    gradients = torch.autograd.grad(out.sum(), list(mixer.parameters()))
    assert torch.isfinite(out).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_bias_of_the_teacher_finds_its_place(name: str) -> None:
    mixer = make_mixer(name, attention_bias=True)
    assert {part for part, _ in mixer.named_parameters() if part in ("q_proj.bias", "k_proj.bias", "v_proj.bias")}
    assert mixer.o_proj.bias is None
    assert make_mixer(name, attention_bias=True, attention_output_bias=True).o_proj.bias is not None


def test_under_autocast_the_state_is_float32(name: str) -> None:
    mixer, x = make_mixer(name, started=True), torch.randn(2, 9, HIDDEN)
    exact, exact_state = run(mixer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = run(mixer, x)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    assert [part.dtype for part in parts(state)] == [part.dtype for part in parts(exact_state)]


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_under_autocast_the_recurrence_is_not_rounded(recurrent: str) -> None:
    mixer = make_mixer(recurrent)
    q, k, v = (torch.randn(1, 9, HEADS, DIM) for _ in range(3))
    state = torch.randn(1, HEADS, DIM, DIM)
    g, beta = -torch.rand(1, 9, HEADS, 1), torch.rand(1, 9, HEADS)
    for form, inputs in (
        (mixer.run_linear, (q, k, v, g, state, None)),
        (mixer.run_delta, (q, k, v, g, beta, state, None)),
    ):
        exact = form(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(torch.equal(one, other) for one, other in zip(form(*inputs), exact, strict=True))


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_gate_starts_open(recurrent: str) -> None:
    assert F.silu(torch.tensor(SILU_ONE, dtype=torch.float64)).item() == pytest.approx(1.0, abs=1e-15)
    x = torch.randn(3, 5, HIDDEN)
    for kind, wanted in (("silu", 1.0), ("sigmoid", 0.982)):
        gate = GATES[kind][0](make_mixer(recurrent, started=True, output_gate=kind).gate(x))
        torch.testing.assert_close(gate, torch.full_like(gate, wanted), rtol=0, atol=1e-6 if kind == "silu" else 1e-3)
    shut = F.silu(make_mixer(recurrent, started=True, gate_identity=False).gate(x))
    assert shut.std() > 0.01


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_without_a_gate_the_output_is_that_of_the_open_gate(recurrent: str) -> None:
    x, gated = torch.randn(2, 9, HIDDEN), make_mixer(recurrent, started=True)
    plain = make_mixer(recurrent, started=True, output_gate="none")
    missing = plain.load_state_dict(gated.state_dict(), strict=False)
    assert not missing.missing_keys and {key.partition("_")[0] for key in missing.unexpected_keys} <= {"g", "z"}
    torch.testing.assert_close(run(plain, x)[0], run(gated, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_without_a_convolution_the_output_is_that_of_the_identity(recurrent: str) -> None:
    x, convolved = torch.randn(2, 9, HIDDEN), make_mixer(recurrent, started=True)
    plain = make_mixer(recurrent, started=True, short_conv=False)
    missing = plain.load_state_dict(convolved.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.startswith("conv_") for key in missing.unexpected_keys)
    torch.testing.assert_close(run(plain, x)[0], run(convolved, x)[0])
    random = make_mixer(recurrent, started=True, conv_identity=False).conv_weight
    assert random.abs().max() <= 0.5 and random[:, 0].std() > 0.1


def test_convolution_convolves() -> None:
    x, past, weight = torch.randn(2, 9, 8), torch.randn(2, 8, CONV_SIZE - 1), torch.randn(8, CONV_SIZE)
    expected = F.conv1d(torch.cat((past, x.mT), -1), weight[:, None], groups=8).mT
    torch.testing.assert_close(causal_convolution(x, weight, past, None), expected)


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_output_norm_stands_before_the_gate(recurrent: str) -> None:
    x, mixer = torch.randn(2, 9, HIDDEN), make_mixer(recurrent, started=True, output_norm=True, rms_norm_eps=1e-12)
    mixer.o_proj = torch.nn.Identity()
    normed = run(mixer, x)[0].view(2, 9, HEADS, DIM).square().mean(-1)
    torch.testing.assert_close(normed, torch.ones_like(normed), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_query_scale_scales_the_output(recurrent: str) -> None:
    x, mixer = torch.randn(2, 5, HIDDEN), make_mixer(recurrent, started=True)
    published = 1.0 if recurrent == "mamba2" else DIM**-0.5
    assert mixer.scale == published
    doubled = make_mixer(recurrent, started=True, query_scale=2 * published)
    doubled.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(run(doubled, x)[0], 2 * run(mixer, x)[0])


@pytest.mark.parametrize("recurrent", RECURRENT)
def test_unit_length_where_published(recurrent: str) -> None:
    x, mixer = torch.randn(2, 5, HIDDEN), make_mixer(recurrent, started=True)
    longer = make_mixer(recurrent, started=True)
    longer.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        longer.q_proj.weight.mul_(3)
    unmoved = torch.allclose(run(longer, x)[0], run(mixer, x)[0], rtol=1e-4, atol=1e-5)
    assert unmoved == (recurrent in ("kda", "gdn"))
    free = make_mixer(recurrent, started=True, qk_l2norm=False)
    free.load_state_dict(mixer.state_dict())
    assert torch.allclose(run(free, x)[0], run(mixer, x)[0]) == (recurrent in ("gla", "mamba2"))


def attention_like(mixer: SlidingWindowAttention) -> Qwen3Attention:
    shape = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM}
    config = Qwen3Config(**shape, num_hidden_layers=1, attn_implementation="eager")
    attention = Qwen3Attention(config, 0)
    attention.load_state_dict(mixer.state_dict())
    return attention


@pytest.mark.parametrize(("time", "window", "sinks"), [(9, 9, 0), (9, 12, 3), (17, 4, 2), (17, 5, 0), (6, 1, 1)])
def test_swa_is_the_teachers_attention_under_a_mask(time: int, window: int, sinks: int) -> None:
    mixer = make_mixer("swa", sliding_window=window, attention_sinks=sinks)
    x, index = torch.randn(2, time, HIDDEN), torch.arange(time)
    distance = index[:, None] - index
    seen = (distance >= 0) & ((distance < window) | (index < sinks))
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
    rotary = Qwen3RotaryEmbedding(make_config())(x, index[None])
    expected, _ = attention_like(mixer)(x, rotary, mask)
    torch.testing.assert_close(run(mixer, x)[0], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    window=st.integers(1, 8),
    sinks=st.integers(0, 3),
    chunk_size=st.integers(1, 8),
    calls=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_swa_by_blocks_is_the_loop(window: int, sinks: int, chunk_size: int, calls: list[list[int]]) -> None:
    """Packed documents, the last of each call going on in the next."""
    torch.manual_seed(0)
    mixer = make_mixer("swa", sliding_window=window, attention_sinks=sinks, chunk_size=chunk_size)
    states: dict[bool, Any] = {False: None, True: None}
    for lengths in calls:
        segments, positions = packed_lengths(*lengths)
        if states[True] is not None:
            positions = positions + (segments == 0) * states[True].seen
        x, outputs = torch.randn(1, sum(lengths), HIDDEN), {}
        for naive in states:
            mixer.naive = naive
            outputs[naive], states[naive] = run(mixer, x, positions, segments=segments, state=states[naive])
        torch.testing.assert_close(outputs[False], outputs[True], rtol=1e-4, atol=1e-5)
        assert torch.equal(states[False].seen, states[True].seen)


def test_swa_keeps_memory_linear_in_length() -> None:
    mixer, kept = make_mixer("swa"), {}
    for time in (256, 1024):
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor, storages: dict[int, torch.UntypedStorage] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(mixer, torch.randn(1, time, HIDDEN))
        kept[time] = sum(storage.nbytes() for storage in storages.values())
    assert kept[1024] <= 4.1 * kept[256]


def test_swa_keeps_sinks_and_window_and_no_more() -> None:
    mixer = make_mixer("swa")
    sizes = {tuple(run(mixer, torch.randn(2, time, HIDDEN))[1].keys.shape) for time in (1, 3, 6, 40)}
    assert sizes == {(2, KV_HEADS, SINKS + WINDOW, DIM)}


def test_switches_that_are_not_there_are_refused() -> None:
    with pytest.raises(Exception, match="output_gate must be one of silu, sigmoid or none"):
        make_config(output_gate="tanh")
    for window in (None, 0):
        with pytest.raises(ValueError, match="sliding_window must be at least 1"):
            make_mixer("swa", sliding_window=window)
    with pytest.raises(ValueError, match="needs position embeddings"):
        make_mixer("swa")(torch.randn(1, 3, HIDDEN))
    with pytest.raises(Exception, match="layer_types must be 2 of full_attention, kda, gdn, gla, mamba2, swa"):
        HybridConfig(num_hidden_layers=2, layer_types=["full_attention", "mamba"])
