"""The drop-in contract of the layer: results follow the weights, however they change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import eager_copy
from layers import run, same_as_pytorch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import cnnlstm_fast
from cnnlstm_fast.contract import bound, relative_error


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def in_place(layer: nn.LSTM) -> None:
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1.5)


def by_data(layer: nn.LSTM) -> None:
    layer.weight_hh_l0.data.add_(0.1)


def by_assigned_data(layer: nn.LSTM) -> None:
    layer.weight_hh_l0.data = torch.randn(32, 8)


def by_numpy(layer: nn.LSTM) -> None:
    layer.bias_ih_l0.detach().numpy()[:] += 0.5


def by_numpy_weight(layer: nn.LSTM) -> None:
    layer.weight_hh_l0.detach().numpy()[3, :] = 0.25


def by_replacement(layer: nn.LSTM) -> None:
    layer.weight_ih_l0 = nn.Parameter(torch.randn(32, 4))


def by_state_dict(layer: nn.LSTM) -> None:
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})


def by_assigned_state_dict(layer: nn.LSTM) -> None:
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()}, assign=True)


def by_init(layer: nn.LSTM) -> None:
    layer.reset_parameters()


def by_optimizer(layer: nn.LSTM) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(2):
        run(layer, torch.randn(5, 3, 4))
        optimizer.step()


def by_foreach(layer: nn.LSTM) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(layer.parameters()), 1.25)


def by_swap(layer: nn.LSTM) -> None:
    nn.utils.vector_to_parameters(torch.randn(sum(p.numel() for p in layer.parameters())), layer.parameters())


EDITS = [
    in_place,
    by_data,
    by_assigned_data,
    by_numpy,
    by_numpy_weight,
    by_replacement,
    by_state_dict,
    by_assigned_state_dict,
    by_init,
    by_optimizer,
    by_foreach,
    by_swap,
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("T, B", [(1, 1), (5, 3)])
@pytest.mark.parametrize("edit", EDITS)
def test_results_follow_the_weights(edit: Any, T: int, B: int, grad: bool) -> None:
    """Nothing that was packed from the weights may outlive them."""
    layer = cnnlstm_fast.LSTM(4, 8)
    x, hx = torch.randn(T, B, 4), (torch.randn(1, B, 8), torch.randn(1, B, 8))
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            before = layer(x, hx)[0].detach()
    edit(layer)
    with torch.set_grad_enabled(grad):
        after = layer(x, hx)[0].detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, eager_copy(layer)(x, hx)[0].detach())


def test_a_new_layer_in_freed_memory_is_not_taken_for_the_old_one() -> None:
    x = torch.randn(3, 2, 4)
    for _ in range(30):
        layer = cnnlstm_fast.LSTM(4, 8)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), eager_copy(layer)(x))
        del layer


def test_edit_between_forward_and_backward_is_noticed() -> None:
    layer = cnnlstm_fast.LSTM(4, 8)
    output = layer(torch.randn(5, 3, 4))[0]
    in_place(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_change_of_dtype_and_back() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
        layer.to(dtype)
        x = torch.randn(5, 3, 4, dtype=dtype)
        plain = eager_copy(layer)
        exact = copy.deepcopy(plain).double()(x.double())[0]
        got, eager = layer(x)[0], plain(x)[0]
        assert got.dtype == dtype
        assert relative_error(got, exact) <= bound(relative_error(eager, exact), dtype)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
        lambda m: parametrize.register_parametrization(m, "weight_ih_l0", Doubled()),
    ],
    ids=["weight_norm", "spectral_norm", "custom"],
)
def test_parametrizations(make: Any, when: str) -> None:
    torch.manual_seed(0)
    plain = nn.LSTM(4, 8)
    layer = copy.deepcopy(plain)
    if when == "after":
        cnnlstm_fast.optimize(layer)
    torch.manual_seed(1)
    make(layer)
    if when == "before":
        cnnlstm_fast.optimize(layer)
    torch.manual_seed(1)
    make(plain)
    assert cnnlstm_fast.recurrent.class_swap.is_fast(layer)
    # spectral norm advances by a power iteration at each use in training
    plain.eval(), layer.eval()
    x = torch.randn(5, 3, 4)
    _flat(plain)
    torch.testing.assert_close(run(layer, x), run(plain, x))
    assert list(layer.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    name = next(iter(layer.parametrizations))
    parametrize.remove_parametrizations(layer, name)
    assert cnnlstm_fast.recurrent.class_swap.is_fast(layer)
    same_as_pytorch(layer)
    cnnlstm_fast.revert(layer)
    assert type(layer) is nn.LSTM


def _flat(plain: nn.LSTM) -> None:
    """nn.LSTM reads a list made at construction; it must see what the parametrization gives."""

    def refresh(module: Any, args: Any) -> None:
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]

    plain.register_forward_pre_hook(refresh)


def test_revert_under_a_parametrization() -> None:
    layer = nn.LSTM(4, 8)
    parametrize.register_parametrization(layer, "weight_ih_l0", Doubled())
    kind = type(layer)
    cnnlstm_fast.optimize(layer)
    cnnlstm_fast.revert(layer)
    assert type(layer) is kind


@pytest.mark.skipif(not hasattr(nn.utils, "weight_norm"), reason="this PyTorch has no hook-style weight_norm")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("when", ["before", "after"])
def test_hook_style_weight_norm(when: str) -> None:
    layer = nn.LSTM(4, 8)
    want = eager_copy(layer)
    if when == "after":
        cnnlstm_fast.optimize(layer)
    nn.utils.weight_norm(layer, "weight_hh_l0")
    if when == "before":
        cnnlstm_fast.optimize(layer)
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(layer(x), want(x))
    with torch.no_grad():
        layer.weight_hh_l0_g.mul_(2)
        want.weight_hh_l0.mul_(2)
    torch.testing.assert_close(layer(x), want(x))
    layer(x)[0].sum().backward()
    assert layer.weight_hh_l0_g.grad is not None
    nn.utils.remove_weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x), want(x))
