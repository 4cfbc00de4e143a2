"""The drop-in contract of the layer: copies, files and subclasses."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from helpers import eager_copy
from layers import net, run
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast.recurrent.class_swap import is_fast


class Named(nn.LSTM):
    """A user's subclass: its own signature, attributes, methods and forward."""

    def __init__(self, width: int, name: str = "x") -> None:
        super().__init__(4, width, 2, batch_first=True)
        self.label = name
        self.calls = 0

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        self.calls += 1
        return super().forward(x * 2, hx)[0] + self.shift()

    def shift(self) -> float:
        return 1.0


class Fast(cnnlstm_fast.LSTM):
    """A user's subclass of the fast layer."""

    def __init__(self, width: int) -> None:
        super().__init__(4, width, backend="reference")
        self.label = "fast"

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        return super().forward(x, hx)[0] * 2


@pytest.fixture(params=["LSTM", "optimized", "Named", "Fast"])
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return {
        "LSTM": lambda: cnnlstm_fast.LSTM(4, 8, 2, backend="reference"),
        "optimized": lambda: cnnlstm_fast.optimize(nn.LSTM(4, 8, 2)),
        "Named": lambda: cnnlstm_fast.optimize(Named(8, "mine")),
        "Fast": lambda: Fast(8),
    }[request.param]()


def check_equal_copy(layer: nn.Module, copied: nn.Module) -> None:
    x = torch.randn(5, 3, 4)
    assert copied is not layer and type(copied) is type(layer) and copied.__class__ is layer.__class__
    assert copied.weight_ih_l0 is not layer.weight_ih_l0
    assert getattr(copied, "label", None) == getattr(layer, "label", None)
    assert copied.backend == layer.backend
    torch.testing.assert_close(layer(x), copied(x), rtol=0, atol=0)
    with torch.no_grad():
        copied.weight_ih_l0.add_(1.0)
    first = [out if isinstance(out, Tensor) else out[0] for out in (layer(x), copied(x))]
    assert not torch.equal(*first)


def test_deepcopy(layer: nn.Module) -> None:
    layer(torch.randn(5, 3, 4))
    check_equal_copy(layer, copy.deepcopy(layer))


def test_shallow_copy(layer: nn.Module) -> None:
    copied = copy.copy(layer)
    assert copied.weight_ih_l0 is layer.weight_ih_l0 and type(copied) is type(layer)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(layer: nn.Module, protocol: int) -> None:
    check_equal_copy(layer, pickle.loads(pickle.dumps(layer, protocol)))


def test_torch_save_whole(layer: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    check_equal_copy(layer, torch.load(file, weights_only=False))


def test_torch_save_state_dict(layer: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    copied = copy.deepcopy(layer)
    nn.init.zeros_(copied.weight_hh_l0)
    copied.load_state_dict(torch.load(file, weights_only=True), strict=True)
    check_equal_copy(layer, copied)


def test_an_old_pickle_of_nn_lstm_loads_and_is_optimized() -> None:
    model = pickle.loads(pickle.dumps(net()))
    assert isinstance(cnnlstm_fast.optimize(model)[1], cnnlstm_fast.LSTM)


def test_layers_are_freed() -> None:
    layer = cnnlstm_fast.LSTM(4, 8)
    run(layer, torch.randn(5, 3, 4))
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None


def test_a_subclass_keeps_its_own_ways() -> None:
    model = Named(8, "mine")
    x = torch.randn(3, 5, 4)
    want = model(x)
    cnnlstm_fast.optimize(model)
    assert isinstance(model, Named) and model.__class__ is Named and model.label == "mine"
    torch.testing.assert_close(model(x), want)
    assert model.calls == 2 and "cpu" in cnnlstm_fast.explain(model)
    cnnlstm_fast.revert(model)
    assert type(model) is Named
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)


class Recurrent(ABC, nn.RNNBase):
    """The abstract parent that forecasting packages give their layers."""

    @abstractmethod
    def initial(self) -> Any: ...


class Mixed(Recurrent, nn.LSTM):
    def initial(self) -> Any:
        return None


class Slotted(Named):
    __slots__ = ("extra",)


class Marker:
    mark = 1


class Marked(Marker, nn.LSTM):
    pass


@pytest.mark.parametrize("cls", [Mixed, Slotted, Marked])
def test_a_subclass_of_another_layout(cls: type[nn.LSTM]) -> None:
    """Parents beside nn.LSTM change the memory layout, and Python changes a class only within one layout."""
    layer = cls(8) if cls is Slotted else cls(4, 8)
    x = torch.randn(3, 5, 4)
    want = layer(x)
    cnnlstm_fast.optimize(layer)
    assert isinstance(layer, cls) and layer.__class__ is cls and is_fast(layer)
    torch.testing.assert_close(layer(x), want)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(copied, cls) and is_fast(copied)
        torch.testing.assert_close(copied(x), want)
    assert type(cnnlstm_fast.revert(layer)) is cls


def test_a_subclass_of_the_fast_layer() -> None:
    layer = Fast(8)
    x = torch.randn(5, 3, 4)
    assert isinstance(layer, nn.LSTM) and isinstance(layer, Fast) and layer.backend == "reference"
    torch.testing.assert_close(layer(x), eager_copy(layer)(x)[0] * 2)
    assert cnnlstm_fast.optimize(layer) is layer and type(layer) is Fast


def test_super_init_of_a_subclass_in_an_optimized_class() -> None:
    layer = cnnlstm_fast.optimize(Named(8))
    fresh = type(layer)(16, "made")
    assert fresh.label == "made" and fresh(torch.randn(3, 5, 4)).shape == (3, 5, 16)
