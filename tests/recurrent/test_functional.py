"""lstm(): layouts in and out, against nn.LSTM in float64."""

from __future__ import annotations

import pytest
import torch
from helpers import eager_copy
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import cnnlstm_fast
from cnnlstm_fast.recurrent import functional

T, B, I, H = 5, 3, 4, 6


@pytest.fixture(params=[(1, False, 0), (2, True, 0), (2, True, 2)], ids=str)
def layer(request: pytest.FixtureRequest) -> cnnlstm_fast.LSTM:
    layers, bidirectional, proj = request.param
    torch.manual_seed(0)
    return cnnlstm_fast.LSTM(I, H, layers, bidirectional=bidirectional, proj_size=proj, dtype=torch.float64)


def states(layer: cnnlstm_fast.LSTM, *batch: int) -> tuple[Tensor, Tensor]:
    k = layer.num_layers * (2 if layer.bidirectional else 1)
    shapes = (k, *batch, layer.proj_size or H), (k, *batch, H)
    return tuple(torch.randn(s, dtype=torch.float64) for s in shapes)


def same(layer: cnnlstm_fast.LSTM, x: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None) -> None:
    (got, got_states), (want, want_states) = layer(x, hx), eager_copy(layer)(x, hx)
    torch.testing.assert_close(got_states, want_states)
    if isinstance(x, PackedSequence):
        assert isinstance(got, PackedSequence)
        assert torch.equal(got.batch_sizes, want.batch_sizes)
        for a, b in (
            (got.sorted_indices, want.sorted_indices),
            (got.unsorted_indices, want.unsorted_indices),
        ):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
        got, want = got.data, want.data
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_padded(layer: cnnlstm_fast.LSTM, batch_first: bool, with_states: bool) -> None:
    layer.batch_first = batch_first
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64)
    same(layer, x, states(layer, B) if with_states else None)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(layer: cnnlstm_fast.LSTM, batch_first: bool, with_states: bool) -> None:
    layer.batch_first = batch_first
    same(layer, torch.randn(T, I, dtype=torch.float64), states(layer) if with_states else None)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("lengths", [[5, 4, 1], [2, 5, 3]], ids=str)
def test_packed(layer: cnnlstm_fast.LSTM, lengths: list[int], with_states: bool) -> None:
    x = torch.randn(T, B, I, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=lengths[0] == 5)
    same(layer, packed, states(layer, B) if with_states else None)


def test_packed_list(layer: cnnlstm_fast.LSTM) -> None:
    parts = [torch.randn(n, I, dtype=torch.float64) for n in (2, 5, 3, 5)]
    same(layer, pack_sequence(parts, enforce_sorted=False), None)


def test_lengths_equal_packed_in_every_layout(layer: cnnlstm_fast.LSTM) -> None:
    x, lengths, hx = torch.randn(B, T, I, dtype=torch.float64), torch.tensor([2, 5, 3]), states(layer, B)
    layer.batch_first = True
    output, (h, c) = layer(x, hx, lengths=lengths)
    packed, (ph, pc) = layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False), hx)
    torch.testing.assert_close(output, pad_packed_sequence(packed, batch_first=True)[0])
    torch.testing.assert_close((h, c), (ph, pc))


def test_unbatched_lengths_and_reset(layer: cnnlstm_fast.LSTM) -> None:
    x, reset = torch.randn(T, I, dtype=torch.float64), torch.tensor([False, True, False, False, False])
    output, (h, _), cells = layer(x, lengths=torch.tensor(3), reset=reset, all_cells=True)
    want = layer(x[:, None], lengths=torch.tensor([3]), reset=reset[:, None], all_cells=True)
    torch.testing.assert_close(output, want[0][:, 0])
    torch.testing.assert_close(h, want[1][0][:, 0])
    torch.testing.assert_close(cells, want[2][:, :, 0])


def test_reset_by_batch_first(layer: cnnlstm_fast.LSTM) -> None:
    x, reset = torch.randn(T, B, I, dtype=torch.float64), torch.rand(T, B) < 0.4
    want = layer(x, reset=reset, all_cells=True)
    layer.batch_first = True
    got = layer(x.transpose(0, 1), reset=reset.t(), all_cells=True)
    torch.testing.assert_close(got[0], want[0].transpose(0, 1))
    torch.testing.assert_close(got[2], want[2].transpose(1, 2))


def test_shape_of_all_cells(layer: cnnlstm_fast.LSTM) -> None:
    k = layer.num_layers * (2 if layer.bidirectional else 1)
    x = torch.randn(T, B, I, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
    assert layer(x, all_cells=True)[2].shape == (k, T, B, H)
    assert layer(x[:, 0], all_cells=True)[2].shape == (k, T, H)
    assert layer(packed, all_cells=True)[2].shape == (k, 10, H)
    layer.batch_first = True
    assert layer(x, all_cells=True)[2].shape == (k, T, B, H)
    output, (_, c), cells = layer(x, all_cells=True)
    assert output.shape[:2] == (T, B)
    torch.testing.assert_close(cells[0, :, -1], c[0])


def test_step_by_step_equals_one_call() -> None:
    layer = cnnlstm_fast.LSTM(I, H, 2, dtype=torch.float64)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), states(layer, B)
    whole, last = layer(x, hx)
    steps = []
    for t in range(T):
        out, hx = layer(x[t : t + 1], hx)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps), whole)
    torch.testing.assert_close(hx, last)


def test_states_may_come_as_a_list_and_be_expanded() -> None:
    layer = cnnlstm_fast.LSTM(I, H, dtype=torch.float64)
    x, h = (
        torch.randn(T, B, I, dtype=torch.float64),
        torch.randn(1, 1, H, dtype=torch.float64).expand(1, B, H),
    )
    torch.testing.assert_close(layer(x, [h, h]), eager_copy(layer)(x, (h, h)))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("T, B", [(1, 1), (5, 3)])
def test_results_lie_in_memory_as_nn_lstms_do(
    layer: cnnlstm_fast.LSTM, T: int, B: int, batch_first: bool
) -> None:
    """Other people's models call view on them."""
    layer.batch_first = batch_first
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64)
    for each in (layer, layer.float()):
        given = x.to(each.weight_ih_l0.dtype)
        (got, got_states), (want, want_states) = each(given), eager_copy(each)(given)
        for a, b in zip((got, *got_states), (want, *want_states), strict=True):
            assert a.stride() == b.stride() or (a.is_contiguous() and b.is_contiguous())


@pytest.mark.parametrize("T, B", [(0, 3), (5, 0), (0, 0)])
def test_empty(layer: cnnlstm_fast.LSTM, T: int, B: int) -> None:
    output, (h, _) = layer(torch.randn(T, B, I, dtype=torch.float64))
    D = 2 if layer.bidirectional else 1
    assert output.shape == (T, B, D * (layer.proj_size or H)) and h.shape[1] == B and not h.any()


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_mask_is_what_nn_dropout_draws(p: float) -> None:
    like = torch.ones(2, 4, 3)
    torch.manual_seed(3)
    mask = functional.draw_dropout(p, (2, 4, 2, 3), like)
    torch.manual_seed(3)
    want = torch.stack([nn.functional.dropout(torch.ones(4, 2, 3), p) for _ in range(2)])
    torch.testing.assert_close(mask, want)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradcheck_and_gradgradcheck(backend: str) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(2, 3, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h, c = (torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lengths = torch.tensor([1, 3])

    def call(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, states = cnnlstm_fast.lstm(
            x, (h, c), weights, num_layers=2, bidirectional=True, lengths=lengths, backend=backend
        )
        return (output, *states)

    inputs = (x, h, c, *layer._flat_weights)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
