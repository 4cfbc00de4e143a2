"""Weights that the caller promises not to edit, and copies that are kept for autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_prepacked import EDITS
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native, explain, optimize, revert

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")
H, I = 40, 24
kept_bytes = torch.ops.cnnlstm_fast.prepacked_bytes if _native.available else None


def frozen_layer(dtype: torch.dtype = torch.float32) -> nn.LSTM:
    return optimize(nn.LSTM(I, H, num_layers=2, dtype=dtype).eval(), backend="cpu", frozen=True)


@torch.no_grad()
def same(layer: nn.LSTM, T: int, B: int) -> bool:
    """Whether the layer computes with the weights that it has now."""
    x = torch.randn(T, B, I, dtype=layer.weight_ih_l0.dtype)
    exact = nn.LSTM(I, H, 2, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    got, want = layer(x)[0].double(), exact(x.double())[0]
    return bool((got - want).norm() / want.norm() < (2e-6 if x.dtype == torch.float32 else 1e-2))


def past_autograd(layer: nn.LSTM) -> None:
    layer.weight_ih_l0.data.neg_()
    layer.weight_hh_l0.data.neg_()


def counted(layer: nn.LSTM) -> None:
    with torch.no_grad():
        layer.weight_ih_l0.neg_()
        layer.weight_hh_l0.neg_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 9), (30, 2)])
def test_frozen_weights_are_packed_at_once_and_compared_no_more(T: int, B: int, dtype: torch.dtype) -> None:
    cnnlstm_fast.clear_cache()
    layer = frozen_layer(dtype)
    assert kept_bytes() == 0 and same(layer, T, B) and kept_bytes() > 0
    assert same(layer, T, B)
    past_autograd(layer)
    assert not same(layer, T, B)  # as promised
    counted(layer)
    assert same(layer, T, B)
    counted(layer)
    assert same(layer, T, B) and same(layer, T, B)


@pytest.mark.parametrize("undo", [revert, optimize, lambda layer: optimize(layer, frozen=True)])
def test_an_edit_before_the_promise_is_taken_back_or_given_anew_is_seen(
    undo: Callable[[nn.Module], nn.Module],
) -> None:
    layer = frozen_layer()
    assert same(layer, 30, 2)
    past_autograd(layer)
    undo(layer)
    for _ in range(3):
        assert same(optimize(layer, backend="cpu") if undo is revert else layer, 30, 2)


def test_weights_that_replace_frozen_ones_are_not_frozen() -> None:
    layer = frozen_layer()
    assert "frozen" in explain(layer)
    layer.weight_hh_l0 = nn.Parameter(torch.randn(4 * H, H) / 8)
    assert "frozen" not in explain(layer)
    for _ in range(3):
        assert same(layer, 30, 2)
    layer.weight_hh_l0.data.neg_()
    assert same(layer, 30, 2)
    assert "frozen" not in explain(revert(frozen_layer()))


def test_a_weight_beside_a_frozen_one_in_the_same_memory_is_not_frozen() -> None:
    layer, other = nn.LSTM(I, H, num_layers=2).eval(), optimize(nn.LSTM(I, H, 2).eval(), backend="cpu")
    both = torch.randn(2, 4 * H, H) / 8
    layer.weight_hh_l0, other.weight_hh_l0 = nn.Parameter(both[0]), nn.Parameter(both[1])
    optimize(layer, backend="cpu", frozen=True)
    for _ in range(3):
        assert same(layer, 30, 2) and same(other, 30, 2)
    other.weight_hh_l0.data.neg_()
    assert same(other, 30, 2)
    layer.weight_hh_l0.data.neg_()
    assert not same(layer, 30, 2)


def test_cells_are_frozen_and_models_without_lstm_too() -> None:
    cell = optimize(nn.LSTMCell(I, H), backend="cpu", frozen=True)
    x = torch.randn(3, I)
    with torch.no_grad():
        before = cell(x)[0]
        cell.weight_ih.data.neg_()
        assert torch.equal(cell(x)[0], before)
        assert not torch.equal(optimize(cell, backend="cpu")(x)[0], before)
    optimize(nn.Linear(2, 2), frozen=True)


@torch.no_grad()
def autocast_is_right(layer: nn.LSTM) -> None:
    x = torch.randn(30, 2, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x)[0]
    copied = [w.bfloat16() for w in layer.parameters()]
    want = cnnlstm_fast.lstm(x.bfloat16(), None, copied, num_layers=2, backend="reference")[0]
    assert got.dtype == torch.bfloat16
    error = (got.double() - want.double()).norm() / want.double().norm()
    assert error < 1e-2, f"the weights before the edit were used: error {error:.1e}"


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0"])
@pytest.mark.parametrize(
    "edit", [EDITS[name] for name in ("in place", "past autograd", "all signs", "one number")]
)
def test_copies_for_autocast_are_kept_and_follow_every_edit(
    edit: Callable[[Tensor], None], name: str
) -> None:
    cnnlstm_fast.clear_cache()
    layer = optimize(nn.LSTM(I, H, num_layers=2).eval(), backend="cpu")
    for _ in range(4):
        autocast_is_right(layer)
    bytes_of_copies = sum(2 * w.numel() for w in layer.parameters())
    assert kept_bytes() > bytes_of_copies  # and their panels
    weight = getattr(layer, name)
    if weight.dim() == 1 and edit is EDITS["one number"]:
        weight.data[-1] += 40.0
    else:
        edit(weight)
    for _ in range(3):
        autocast_is_right(layer)
    del layer, weight
    cnnlstm_fast.clear_cache()
    assert kept_bytes() == 0


def test_under_autocast_gradients_reach_the_weights() -> None:
    layer = optimize(nn.LSTM(I, H, num_layers=2), backend="cpu")
    x = torch.randn(30, 2, I)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)[0].float().pow(2).sum().backward()
        assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in layer.parameters())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layer(x)[0].requires_grad
