"""Calls that C++ runs from the layer's attributes to the result: the same as by the usual way, and only plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import cnnlstm_fast
from cnnlstm_fast import _native
from cnnlstm_fast.encoder.lstm_call import LSTMCall, LSTMPlace
from cnnlstm_fast.recurrent import cell, functional
from cnnlstm_fast.recurrent.dispatch import forget_plans

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

I, H, T, B = 5, 7, 4, 3


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    forget_plans()


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets an entry for every call that goes the usual way."""
    found: list[str] = []

    def counted(run: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            found.append(run.__module__)
            return run(*args, **kwargs)

        return counting

    monkeypatch.setattr(functional, "run", counted(functional.run))
    monkeypatch.setattr(cell, "run", counted(cell.run))
    return found


def lstm(**options: Any) -> cnnlstm_fast.LSTM:
    return cnnlstm_fast.LSTM(I, H, backend=options.pop("backend", "cpu"), **options).eval()


def states(layer: nn.Module, *batch: int) -> tuple[Tensor, Tensor]:
    m: Any = layer
    layers = m.num_layers * (2 if m.bidirectional else 1)
    kept = m.weight_ih_l0.dtype
    return (
        torch.randn(layers, *batch, m.proj_size or H, dtype=kept),
        torch.randn(layers, *batch, H, dtype=kept),
    )


LAYERS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"batch_first": True, "bidirectional": True},
    "projection": {"proj_size": 3, "num_layers": 2},
    "no bias": {"bias": False},
    "bf16": {"dtype": torch.bfloat16, "num_layers": 2},
    "int8": {"backend": "cpu-int8"},
    "auto": {"backend": "auto"},
    "dropout": {"dropout": 0.5, "num_layers": 2},
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("shape", [(T, B, I), (T, I), (1, 1, I)], ids=str)
@pytest.mark.parametrize("given", ["states", "list", "none"])
@torch.no_grad()
def test_the_second_call_is_known(
    options: dict[str, Any], shape: tuple[int, ...], given: str, usual: list[str]
) -> None:
    layer = lstm(**options)
    dtype = layer.weight_ih_l0.dtype
    batch = shape[1:-1] if not layer.batch_first else shape[:-2]

    def arguments() -> tuple[Any, ...]:
        x = torch.randn(shape, dtype=dtype)
        return (x,) if given == "none" else (x, (tuple if given == "states" else list)(states(layer, *batch)))

    layer(*arguments())
    assert usual
    usual.clear()
    args = arguments()
    found = layer(*args)
    assert not usual
    forget_plans()
    wanted = layer(*args)
    assert usual
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert [t.stride() for t in pytree.tree_leaves(found)] == [t.stride() for t in pytree.tree_leaves(wanted)]


@pytest.mark.parametrize("shape", [(B, I), (I,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
@torch.no_grad()
def test_the_second_step_of_a_cell_is_known(
    shape: tuple[int, ...], bias: bool, given: bool, usual: list[str]
) -> None:
    layer = cnnlstm_fast.LSTMCell(I, H, bias=bias, backend="cpu")
    x, hx = torch.randn(shape), (torch.randn(*shape[:-1], H), torch.randn(*shape[:-1], H))
    args = (x, hx) if given else (x,)
    layer(torch.zeros_like(x), *args[1:])
    usual.clear()
    found = layer(*args)
    assert not usual
    forget_plans()
    torch.testing.assert_close(found, layer(*args), rtol=0, atol=0)
    found[0].add_(1.0)  # as policies edit states in place
    assert usual


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def _grad(layer: nn.Module, x: Tensor) -> None:
    assert layer(x)[0].requires_grad


def _input_grad(layer: nn.Module, x: Tensor) -> None:
    layer.requires_grad_(False)
    assert layer(x.requires_grad_())[0].requires_grad


def _autocast(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu"):
        assert layer(x)[0].dtype == torch.bfloat16


def _transform(layer: nn.Module, x: Tensor) -> None:
    assert torch.func.grad(lambda given: layer(given)[0].sum())(x).any()


def _packed(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(pack_sequence([x[:, 0], x[:2, 0]]))


def _lengths(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert not layer(x, lengths=torch.tensor([1, 2, 4]))[0][1:, 0].any()


def _parametrized(layer: nn.Module, x: Tensor) -> None:
    weight_norm(layer, "weight_hh_l0")
    with torch.no_grad():
        layer(x)


def _dropout(layer: nn.Module, x: Tensor) -> None:
    layer.train()
    with torch.no_grad():
        assert not torch.equal(layer(x)[0], layer(x)[0])


def _dispatch_mode(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), _Mode():
        layer(x)


def _default_device(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), torch.device("cpu"):
        layer(x)


def _new_size(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(x[:, :2])


def _other_backend(layer: nn.Module, x: Tensor) -> None:
    layer.backend = "reference"
    with torch.no_grad():
        layer(x)


@pytest.mark.parametrize(
    "call",
    [
        *(_grad, _input_grad, _autocast, _transform, _packed, _lengths, _parametrized, _dropout),
        *(_dispatch_mode, _default_device, _new_size, _other_backend),
    ],
)
def test_other_calls_go_the_usual_way(call: Callable[[nn.Module, Tensor], None], usual: list[str]) -> None:
    layer = lstm(num_layers=2, dropout=0.5)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        layer(x)
        usual.clear()
        layer(x)
        assert not usual
    call(layer, x)
    assert usual or call is _transform  # which may be PyTorch's own forward


@torch.no_grad()
def test_weights_are_read_at_every_call(usual: list[str]) -> None:
    layer, x = lstm(), torch.randn(T, B, I)
    layer(x)

    def check() -> None:
        usual.clear()
        found = layer(x)
        assert not usual
        torch.testing.assert_close(found, nn.LSTM.forward(plain, x), rtol=1e-5, atol=1e-6)

    plain = nn.LSTM(I, H)
    plain.load_state_dict(layer.state_dict())
    check()
    for weights in (layer, plain):
        weights.weight_hh_l0.mul_(-0.5)
    check()
    for weights in (layer, plain):
        weights.weight_ih_l0.data[:] = 0.25
    check()
    layer.weight_ih_l0 = plain.weight_ih_l0 = nn.Parameter(torch.randn(4 * H, I))
    check()


@torch.no_grad()
def test_errors_are_those_of_the_usual_way() -> None:
    layer, x = lstm(), torch.randn(T, B, I)
    layer(x)
    layer(x)
    with pytest.raises(ValueError, match="input: expected 5 features"):
        layer(x[..., :4])
    with pytest.raises(ValueError, match="h0: expected shape"):
        layer(x, (torch.zeros(1, B + 1, H), torch.zeros(1, B, H)))
    with pytest.raises(TypeError, match="hx: expected a pair"):
        layer(x, torch.zeros(1, B, H))
    with pytest.raises(ValueError, match="input: expected the weights' dtype"):
        layer(x.double())
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(4 * H, H + 1))
    with pytest.raises(ValueError, match="w_hh of layer 0"):
        layer(x)


@torch.no_grad()
def test_a_call_that_pytorch_runs_is_not_known(usual: list[str]) -> None:
    layer, x = lstm(backend="aten"), torch.randn(T, B, I)
    layer(x)
    layer(x)
    assert len(usual) == 2


def test_inference_mode(usual: list[str]) -> None:
    layer, x = lstm(), torch.randn(T, B, I)
    with torch.inference_mode():
        layer(x)
        usual.clear()
        found = layer(x)[0]
        assert not usual and found.is_inference()
    with torch.no_grad():
        assert not layer(x)[0].is_inference()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_second_call_of_a_graph_is_known(
    options: dict[str, Any], dtype: torch.dtype, usual: list[str]
) -> None:
    layer = lstm(dtype=dtype, **options)
    two = layer.bidirectional
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    call = LSTMCall(LSTMPlace("", two, False), "cpu", None if dtype == torch.float32 else dtype)
    for given in (states(layer, B), (None, None)):
        x = torch.randn(T, B, I)
        hx = tuple(None if s is None else s.float() for s in given)
        usual.clear()
        wanted = call(x, *hx, weights, None, None)
        assert usual
        usual.clear()
        found = call(x, *hx, weights, None, None)
        assert not usual and all(t.dtype == torch.float32 for t in found)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        call(x[:2], *hx, weights, None, None)
        assert usual
        usual.clear()
        call(x, *hx, weights, torch.tensor([1, 2, 4]), None)
        assert usual
    other = LSTMCall(LSTMPlace("", two, False), "reference")
    usual.clear()
    other(x.to(dtype), None, None, weights, None, None)
    assert usual
