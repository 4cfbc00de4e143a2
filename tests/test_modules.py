"""The drop-in contract of the layer: a test for each word of it."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from helpers import eager_copy
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import cnnlstm_fast
from cnnlstm_fast._identity import is_stand_in
from cnnlstm_fast.contract import bound, relative_error

ARGUMENTS: list[dict[str, Any]] = [
    {},
    dict(num_layers=2, bidirectional=True),
    dict(bias=False, batch_first=True),
    dict(num_layers=2, proj_size=3, dropout=0.5),
]


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


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def net(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 8, **options))


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, states and gradients of a training step."""
    layer.zero_grad()
    output, (h, c) = layer(x)
    (output.sin().sum() + h.cos().sum() + c.sum()).backward()
    # by name: a parametrization that was removed leaves its parameter at another place in the order
    return [
        output.detach(),
        h.detach(),
        c.detach(),
        *[p.grad.clone() for _, p in sorted(layer.named_parameters())],
    ]


def same_as_pytorch(layer: nn.Module, x: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
    """By the contract: ours, PyTorch's own and PyTorch's in float64, with the layer's present weights."""
    x = torch.randn(5, 3, layer.input_size, dtype=dtype) if x is None else x
    plain = eager_copy(layer)
    exact = run(copy.deepcopy(plain).double(), x.double())
    for got, eager, ref in zip(run(layer, x), run(plain, x), exact, strict=True):
        assert got.dtype == eager.dtype
        assert relative_error(got, ref) <= bound(relative_error(eager, ref), dtype)


# Identity


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_parameters_names_and_order(arguments: dict[str, Any]) -> None:
    torch.manual_seed(1)
    ours = cnnlstm_fast.LSTM(4, 8, **arguments)
    torch.manual_seed(1)
    theirs = nn.LSTM(4, 8, **arguments)
    for (name, p), (their_name, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == their_name and torch.equal(p, q)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours._flat_weights_names == theirs._flat_weights_names and ours._all_weights == theirs._all_weights


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_state_dicts_load_both_ways(arguments: dict[str, Any]) -> None:
    ours, theirs = cnnlstm_fast.LSTM(4, 8, **arguments).eval(), nn.LSTM(4, 8, **arguments).eval()
    x = torch.randn(5, 3, 4)
    for source, target in ((ours, theirs), (theirs, ours)):
        target.load_state_dict(source.state_dict(), strict=True)
        torch.testing.assert_close(source(x), target(x))
        nn.init.normal_(theirs.weight_ih_l0)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_attributes(arguments: dict[str, Any]) -> None:
    ours, theirs = cnnlstm_fast.LSTM(4, 8, **arguments), nn.LSTM(4, 8, **arguments)
    names = "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size training"
    for name in names.split():
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.extra_repr() == theirs.extra_repr()
    assert [len(group) for group in ours.all_weights] == [len(group) for group in theirs.all_weights]
    assert ours.all_weights[0][0] is ours.weight_ih_l0
    assert ours.flatten_parameters() is None
    assert repr(ours) == repr(theirs)


def test_is_an_nn_lstm() -> None:
    layer = cnnlstm_fast.LSTM(4, 8)
    assert isinstance(layer, (nn.LSTM, nn.RNNBase, nn.Module, cnnlstm_fast.LSTM)) and isinstance(
        layer, nn.LSTM
    )
    assert isinstance(layer, cnnlstm_fast.LSTM)
    assert not isinstance(layer, nn.GRU)
    assert not isinstance(nn.LSTM(4, 8), cnnlstm_fast.LSTM)


def test_optimize_keeps_the_parameter_objects() -> None:
    model = net(num_layers=2)
    before = list(model.named_parameters())
    cnnlstm_fast.optimize(model)
    for (name, p), (after, q) in zip(before, model.named_parameters(), strict=True):
        assert name == after and p is q


# Copies and files


@pytest.fixture(params=["LSTM", "optimized", "Named", "Fast"])
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return {
        "LSTM": lambda: cnnlstm_fast.LSTM(4, 8, 2, backend="reference"),
        "optimized": lambda: cnnlstm_fast.optimize(nn.LSTM(4, 8, 2)),
        "Named": lambda: cnnlstm_fast.optimize(Named(8, "mine")),
        "Fast": lambda: Fast(8),
    }[request.param]()


def equal_twin(layer: nn.Module, twin: nn.Module) -> None:
    x = torch.randn(5, 3, 4)
    assert twin is not layer and type(twin) is type(layer) and twin.__class__ is layer.__class__
    assert twin.weight_ih_l0 is not layer.weight_ih_l0
    assert getattr(twin, "label", None) == getattr(layer, "label", None)
    assert twin.backend == layer.backend
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=0)
    with torch.no_grad():
        twin.weight_ih_l0.add_(1.0)
    first = [out if isinstance(out, Tensor) else out[0] for out in (layer(x), twin(x))]
    assert not torch.equal(*first)


def test_deepcopy(layer: nn.Module) -> None:
    layer(torch.randn(5, 3, 4))
    equal_twin(layer, copy.deepcopy(layer))


def test_shallow_copy(layer: nn.Module) -> None:
    twin = copy.copy(layer)
    assert twin.weight_ih_l0 is layer.weight_ih_l0 and type(twin) is type(layer)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(layer: nn.Module, protocol: int) -> None:
    equal_twin(layer, pickle.loads(pickle.dumps(layer, protocol)))


def test_torch_save_whole(layer: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    equal_twin(layer, torch.load(file, weights_only=False))


def test_torch_save_state_dict(layer: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(layer)
    nn.init.zeros_(twin.weight_hh_l0)
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    equal_twin(layer, twin)


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


# Subclasses


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
    assert isinstance(layer, cls) and layer.__class__ is cls and is_stand_in(layer)
    torch.testing.assert_close(layer(x), want)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(copied, cls) and is_stand_in(copied)
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


# Weights that change


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
    assert cnnlstm_fast._identity.is_stand_in(layer)
    # spectral norm advances by a power iteration at each use in training
    plain.eval(), layer.eval()
    x = torch.randn(5, 3, 4)
    _flat(plain)
    torch.testing.assert_close(run(layer, x), run(plain, x))
    assert list(layer.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    name = next(iter(layer.parametrizations))
    parametrize.remove_parametrizations(layer, name)
    assert cnnlstm_fast._identity.is_stand_in(layer)
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


# Other users of modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
def test_dynamic_quantization_of_the_linears_leaves_the_layer() -> None:
    model = cnnlstm_fast.optimize(net()).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert cnnlstm_fast._identity.is_stand_in(quantized[1])
    assert quantized(torch.randn(5, 2, 3))[0].isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
def test_dynamic_quantization_after_revert_swaps_it() -> None:
    model = cnnlstm_fast.revert(cnnlstm_fast.optimize(net())).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert "quantized" in type(quantized[1]).__module__
    assert quantized(torch.randn(5, 2, 3))[0].isfinite().all()


def test_functional_call_and_its_gradients() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2)
    x = torch.randn(5, 3, 4)
    layer(x)
    other = {k: torch.randn_like(v).requires_grad_() for k, v in layer.named_parameters()}
    output, _ = torch.func.functional_call(layer, other, (x,))
    plain = eager_copy(layer)
    plain.load_state_dict(other)
    want = plain(x)[0]
    torch.testing.assert_close(output, want)
    grads = torch.autograd.grad(output.sum(), list(other.values()))
    torch.testing.assert_close(grads, torch.autograd.grad(want.sum(), list(plain.parameters())))
    assert all(p.grad is None for p in layer.parameters())


def test_inference_mode() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2)
    x = torch.randn(5, 3, 4)
    want = layer(x)[0].detach()
    with torch.inference_mode():
        output, (h, _) = layer(x)
        assert output.is_inference() and h.is_inference()
        torch.testing.assert_close(output, want)
    same_as_pytorch(layer)
    with torch.inference_mode():
        weights_too = cnnlstm_fast.LSTM(4, 8)
        torch.testing.assert_close(weights_too(x), eager_copy(weights_too)(x))


@pytest.mark.parametrize("given_states", [False, True])
def test_autocast(given_states: bool) -> None:
    layer = cnnlstm_fast.LSTM(16, 32, 2, bidirectional=True)
    plain = eager_copy(layer)
    x = torch.randn(9, 8, 16)
    hx = (torch.randn(4, 8, 32), torch.randn(4, 8, 32)) if given_states else None
    exact = copy.deepcopy(plain).double()
    exact_out = exact(x.double(), None if hx is None else (hx[0].double(), hx[1].double()))[0]
    exact_out.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        (got, got_states), (want, want_states) = layer(x, hx), plain(x, hx)
        assert [got.dtype, *[s.dtype for s in got_states]] == [want.dtype, *[s.dtype for s in want_states]]
        with torch.autocast("cpu", enabled=False):
            assert layer(x, hx)[0].dtype == torch.float32
    got.sum().backward()
    want.sum().backward()
    assert relative_error(got, exact_out) <= bound(relative_error(want, exact_out), torch.bfloat16)
    for p, q, r in zip(layer.parameters(), plain.parameters(), exact.parameters(), strict=True):
        assert p.grad.dtype == q.grad.dtype == torch.float32
        limit = bound(relative_error(q.grad, r.grad), torch.bfloat16)
        assert relative_error(p.grad, r.grad) <= limit


def test_autocast_leaves_float64_alone_as_nn_lstm_does() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x)[0].dtype == eager_copy(layer)(x)[0].dtype


def test_some_weights_frozen() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2)
    x = torch.randn(5, 3, 4)
    every = dict(zip(sorted(n for n, _ in layer.named_parameters()), run(layer, x)[3:], strict=True))
    layer.zero_grad()
    layer.weight_hh_l0.requires_grad_(False)
    layer.bias_ih_l1.requires_grad_(False)
    output, (h, c) = layer(x)
    (output.sin().sum() + h.cos().sum() + c.sum()).backward()
    for name, p in layer.named_parameters():
        assert (p.grad is None) == (not p.requires_grad)
        if p.requires_grad:
            torch.testing.assert_close(p.grad, every[name])


def test_frozen_layer_passes_the_gradient_on() -> None:
    layer = cnnlstm_fast.LSTM(4, 8).requires_grad_(False)
    x = torch.randn(5, 3, 4, requires_grad=True)
    (got,) = torch.autograd.grad(layer(x)[0].sum(), x)
    (want,) = torch.autograd.grad(eager_copy(layer)(x)[0].sum(), x)
    torch.testing.assert_close(got, want)
    assert not layer(x.detach())[0].requires_grad


def test_backward_in_eval_mode() -> None:
    same_as_pytorch(cnnlstm_fast.LSTM(4, 8, 2, dropout=0.5).eval())


def test_no_dropout_in_eval_mode_and_some_in_training() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2, dropout=0.5)
    x = torch.randn(5, 3, 4)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_backward_twice() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2)
    output = layer(torch.randn(5, 3, 4))[0].sum()
    output.backward(retain_graph=True)
    first = layer.weight_hh_l0.grad.clone()
    output.backward()
    torch.testing.assert_close(layer.weight_hh_l0.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2, dropout=0.5)
    x = torch.randn(5, 3, 4, requires_grad=True)
    grads = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        layer.zero_grad()
        call(x)[0].sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(*grads)


def test_hooks() -> None:
    layer = nn.LSTM(4, 8)
    called = []
    layer.register_forward_pre_hook(lambda m, args: called.append("pre"))
    layer.register_forward_hook(lambda m, args, out: called.append("forward"))
    layer.register_full_backward_hook(lambda m, gi, go: called.append("backward"))
    layer.weight_hh_l0.register_hook(lambda g: called.append("weight"))
    cnnlstm_fast.optimize(layer)
    output = layer(torch.randn(5, 3, 4, requires_grad=True))[0]
    output.sum().backward()
    assert sorted(called) == ["backward", "forward", "pre", "weight"] and called[:2] == ["pre", "forward"]


def test_eight_threads_at_once() -> None:
    layer = cnnlstm_fast.LSTM(16, 32, 2, bidirectional=True)
    inputs = [torch.randn(3 + k, 1 + k, 16) for k in range(8)]
    with torch.no_grad():
        want = [layer(x)[0] for x in inputs]
    wrong: list[int] = []
    start = threading.Barrier(8)

    def work(k: int) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(layer(inputs[k])[0], want[k]):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Processes


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads by Linux's /proc")
def test_one_thread_is_obeyed() -> None:
    """In a fresh process set to one thread, neither forward nor backward starts a pool of threads."""
    code = """
import os, torch, cnnlstm_fast
torch.set_num_threads(1)
layer = cnnlstm_fast.LSTM(64, 128, 2, bidirectional=True)
x = torch.randn(20, 16, 64)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
with torch.no_grad():
    layer(x)
print(count() - before)
layer(x)[0].sum().backward()
print(count() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["0", "0"], done.stderr


def _answer(layer: nn.Module, x: Tensor, training: bool, queue: Any) -> None:
    if training:
        queue.put([t.numpy() for t in run(layer, x)])
    else:
        with torch.no_grad():
            queue.put([layer(x)[0].numpy()])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
def test_fork_after_first_use(training: bool) -> None:
    """As DataLoader workers and forking servers do; threads of a pool do not live on in the child.

    The parent runs no backward: PyTorch's own autograd threads forbid one in a child after that."""
    layer = cnnlstm_fast.LSTM(64, 128, 2, bidirectional=True)
    x = torch.randn(12, 16, 64)
    with torch.no_grad():
        want = layer(x)[0]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_answer, args=(layer, x, training, queue))
    child.start()
    reader = queue._reader
    try:
        assert reader.poll(30), "the child hangs"
        got = queue.get()
    finally:
        child.join(5)
        child.kill()
    torch.testing.assert_close(torch.from_numpy(got[0]), want)
    if training:
        for ours, theirs in zip(got, run(eager_copy(layer), x), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)


def _distributed_step(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    model = nn.parallel.DistributedDataParallel(cnnlstm_fast.optimize(net(num_layers=2, bidirectional=True)))
    model(_batch()[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
    if rank == 0:
        queue.put([p.grad.numpy() for p in model.parameters()])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _batch() -> Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(5))


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed"
)
def test_distributed_data_parallel() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_distributed_step, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert queue._reader.poll(90), "no gradients came"
        got = queue.get()
    finally:
        for worker in workers:
            worker.join(20)
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    model = net(num_layers=2, bidirectional=True)
    model(_batch())[0].square().mean().backward()
    for ours, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), p.grad)


def test_data_parallel_on_a_cpu() -> None:
    model = nn.DataParallel(cnnlstm_fast.optimize(net()))
    assert model(torch.randn(5, 2, 3))[0].shape == (5, 2, 8)


def test_in_a_module_list_with_apply_and_share_memory() -> None:
    model = nn.ModuleList([cnnlstm_fast.LSTM(4, 8), cnnlstm_fast.LSTM(8, 4)])
    seen = []
    model.apply(lambda m: seen.append(isinstance(m, nn.LSTM)))
    assert seen == [True, True, False]
    model.share_memory()
    same_as_pytorch(model[0])
    same_as_pytorch(model[1])


def test_lazily_made_on_meta_and_filled() -> None:
    with torch.device("meta"):
        layer = cnnlstm_fast.LSTM(4, 8)
    layer.to_empty(device="cpu")
    layer.load_state_dict(nn.LSTM(4, 8).state_dict())
    same_as_pytorch(layer)


def test_only_nn_lstms_keywords_are_taken() -> None:
    with pytest.raises(TypeError, match="nonlinearity"):
        cnnlstm_fast.LSTM(4, 8, nonlinearity="tanh")
    assert cnnlstm_fast.LSTM(4, 8).backend == "auto"
