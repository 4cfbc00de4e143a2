"""The drop-in contract of the layer: whose names, attributes and keywords it has, and who may treat it as a module."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from helpers import eager_copy
from layers import net, run, same_as_pytorch
from torch import nn
from torch.utils.checkpoint import checkpoint

import cnnlstm_fast
from cnnlstm_fast.contract import bound, relative_error

ARGUMENTS: list[dict[str, Any]] = [
    {},
    dict(num_layers=2, bidirectional=True),
    dict(bias=False, batch_first=True),
    dict(num_layers=2, proj_size=3, dropout=0.5),
]


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
def test_dynamic_quantization_of_the_linears_leaves_the_layer() -> None:
    model = cnnlstm_fast.optimize(net()).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert cnnlstm_fast.recurrent.class_swap.is_fast(quantized[1])
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
