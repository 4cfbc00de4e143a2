"""optimize, revert and explain do what their docstrings say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import cnnlstm_fast
from cnnlstm_fast import BACKENDS, explain, optimize, revert
from cnnlstm_fast.recurrent.class_swap import is_fast


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4, 2, bidirectional=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        return self.head(self.rnn(x, hx)[0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.decoder = nn.ModuleDict({"lstm": nn.LSTM(4, 4), "gru": nn.GRU(4, 4)})
        self.alias = self.decoder["lstm"]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.decoder["gru"](self.alias(x)[0])[0]


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def lstms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.LSTM)]


def test_the_same_objects_in_the_same_places(model: Net) -> None:
    modules, state = list(model.named_modules()), model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert optimize(model) is model
    assert [(n, id(m)) for n, m in model.named_modules()] == [(n, id(m)) for n, m in modules]
    assert list(model.state_dict()) == list(state)
    assert model.alias is model.decoder["lstm"] and is_fast(model.alias)
    assert not is_fast(model.decoder["gru"]) and type(model.decoder["gru"]) is nn.GRU
    assert len(lstms(model)) == 3 and all(map(is_fast, lstms(model)))
    model(torch.randn(5, 2, 4)).sum().backward()
    before = model.alias.weight_ih_l0.detach().clone()
    optimizer.step()
    assert not torch.equal(model.alias.weight_ih_l0, before)


def test_same_results_and_back(model: Net) -> None:
    x = torch.randn(5, 2, 4)
    want = model(x)
    torch.testing.assert_close(optimize(model)(x), want)
    assert revert(model) is model
    assert all(type(m) is nn.LSTM for m in lstms(model))
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)


def test_twice_is_once(model: Net) -> None:
    kinds = [type(m) for m in optimize(model).modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    assert [type(m) for m in optimize(model).modules()] == kinds
    assert [set(vars(m)) for m in model.modules()] == attributes
    revert(revert(model))
    assert all(type(m) is nn.LSTM for m in lstms(model))


def test_nothing_is_left_behind(model: Net) -> None:
    before = [set(vars(m)) for m in model.modules()]
    revert(optimize(model, backend="reference"))
    assert [set(vars(m)) for m in model.modules()] == before


def test_the_model_is_an_lstm_itself() -> None:
    layer = nn.LSTM(4, 8)
    assert optimize(layer) is layer and is_fast(layer) and isinstance(layer, nn.LSTM)
    assert revert(layer) is layer and type(layer) is nn.LSTM


def test_a_model_without_an_lstm() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3))
    assert optimize(model) is model and revert(model) is model
    assert "no nn.LSTM or nn.LSTMCell in this model" in explain(model)


def test_revert_makes_a_layer_born_fast_plain() -> None:
    layer = revert(cnnlstm_fast.LSTM(4, 8, backend="reference"))
    assert type(layer) is nn.LSTM and not hasattr(layer, "backend")
    layer(torch.randn(5, 2, 4))


def test_backend_for_all(model: Net) -> None:
    optimize(model, backend="reference")
    assert {m.backend for m in lstms(model)} == {"reference"}
    optimize(model)
    assert {m.backend for m in lstms(model)} == {"auto"}


@pytest.mark.parametrize("training", [False, True])
def test_the_training_flag_stays(model: Net, training: bool) -> None:
    optimize(model.train(training))
    assert all(m.training == training for m in model.modules())


def test_a_copy_is_independent(model: Net) -> None:
    fast = optimize(copy.deepcopy(model))
    assert all(map(is_fast, lstms(fast))) and not any(map(is_fast, lstms(model)))


@pytest.mark.parametrize("call", [optimize, revert, explain])
@pytest.mark.parametrize("wrong", [None, "model", nn.LSTM, [nn.LSTM(2, 2)]], ids=str)
def test_no_module(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"model: expected a torch.nn.Module, got {type(wrong).__name__}"):
        call(wrong)


def test_unknown_backend_changes_nothing(model: Net) -> None:
    with pytest.raises(ValueError) as caught:
        optimize(model, backend="fastest")
    assert "'fastest'" in str(caught.value) and all(name in str(caught.value) for name in BACKENDS)
    assert not any(map(is_fast, lstms(model)))


# explain


def test_explain_before_and_after(model: Net) -> None:
    text = explain(model)
    assert text.count("not optimized") == 3 and "cnnlstm_fast.optimize" in text
    text = explain(optimize(model))
    assert "not optimized" not in text and text.count("backend:") == 3
    for name in ("blocks.0.rnn", "blocks.1.rnn", "decoder.lstm"):
        assert name in text


def test_explain_with_inputs_tells_the_calls(model: Net) -> None:
    optimize(model)
    text = explain(model, torch.randn(5, 2, 4))
    assert text.count("T=5 B=2") == 3
    assert text == explain(model, (torch.randn(5, 2, 4),))


def test_explain_names_every_rejection() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, dtype=torch.float16)
    text = explain(layer, torch.randn(5, 2, 4).half())
    spec_line = next(line for line in text.splitlines() if "call:" in line)
    assert "float16" in spec_line and "I=4 H=8" in spec_line
    assert "rejected: cpu:" in text


def test_explain_tells_of_uncalled_and_twice_called_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.LSTM(4, 4), nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for given in (x, x, x[:2]):
                self.used(given)
            return x

    text = explain(optimize(Twice()), torch.randn(5, 2, 4))
    assert text.count("T=5") == 1 and text.count("T=2") == 1 and "not called with these inputs" in text


def test_explain_with_a_packed_sequence() -> None:
    packed = pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3]))
    assert "packed" in explain(cnnlstm_fast.LSTM(4, 8), packed)


def test_explain_leaves_no_hook_even_after_an_error(model: Net) -> None:
    optimize(model)
    with pytest.raises(ValueError, match="input"):
        explain(model, torch.randn(5, 2, 7))
    assert not any(m._forward_pre_hooks for m in model.modules())
    explain(model, torch.randn(5, 2, 4))
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_explain_with_a_named_backend_that_cannot() -> None:
    """The text tells; it does not raise where nothing was asked to run."""
    layer = cnnlstm_fast.LSTM(4, 8, dtype=torch.float16, backend="cpu")
    text = explain(layer)
    assert "cpu" in text and "float16" in text


def test_explain_a_layer_itself() -> None:
    layer = cnnlstm_fast.LSTM(4, 8)
    assert explain(layer).startswith("(the model itself): LSTM(4, 8)")
