"""Bad input: one clear sentence that names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Case, make, spec_of
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cnnlstm_fast
from cnnlstm_fast.recurrent.canonical import split_weights

T, B, I, H = 5, 3, 4, 6


def x(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape or (T, B, I), dtype=dtype, device=device)


def states(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape or (2, B, H), dtype=dtype, device=device)


def packed() -> PackedSequence:
    return pack_padded_sequence(x(), torch.tensor([5, 3, 1]))


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


def reset(*shape: int) -> Tensor:
    return torch.zeros(shape or (T, B), dtype=torch.bool)


Call = Callable[[cnnlstm_fast.LSTM], Any]

BAD: dict[str, tuple[Call, type[Exception], list[str]]] = {
    "no tensor": (lambda m: m([1.0]), TypeError, ["input", "list"]),
    "nothing": (lambda m: m(None), TypeError, ["input", "NoneType"]),
    "rank 1": (lambda m: m(x(4)), ValueError, ["input", "rank 3", "rank 1", "(4,)"]),
    "rank 4": (lambda m: m(x(5, 3, 2, 2)), ValueError, ["input", "rank 4", "(5, 3, 2, 2)"]),
    "features": (lambda m: m(x(T, B, 7)), ValueError, ["input", "4 features", "(5, 3, 7)"]),
    "integers": (lambda m: m(x(dtype=torch.int64)), ValueError, ["input", "int64", "float"]),
    "booleans": (lambda m: m(x(dtype=torch.bool)), ValueError, ["input", "bool", "float"]),
    "complex": (lambda m: m(x(dtype=torch.complex64)), ValueError, ["input", "complex64", "float"]),
    "dtype": (lambda m: m(x(dtype=torch.float64)), ValueError, ["input", "float32", "float64"]),
    "device": (lambda m: m(x(device="meta")), RuntimeError, ["input", "cpu", "meta"]),
    "packed rank": (
        lambda m: m(pack_padded_sequence(x(5, 3, 2, 2), torch.tensor([5, 3, 1]))),
        ValueError,
        ["input", "rank 2", "rank 3"],
    ),
    "h0 shape": (lambda m: m(x(), (states(1, B, H), states())), ValueError, ["h0", "(2, 3, 6)", "(1, 3, 6)"]),
    "c0 shape": (lambda m: m(x(), (states(), states(2, B, 5))), ValueError, ["c0", "(2, 3, 6)", "(2, 3, 5)"]),
    "h0 batch": (lambda m: m(x(), (states(2, 1, H), states())), ValueError, ["h0", "(2, 1, 6)"]),
    "h0 rank": (lambda m: m(x(), (states(2, H), states())), ValueError, ["h0", "rank 3", "rank 2"]),
    "c0 rank": (lambda m: m(x(), (states(), states(H))), ValueError, ["c0", "rank 3", "rank 1"]),
    "h0 rank unbatched": (
        lambda m: m(x(T, I), (states(), states())),
        ValueError,
        ["h0", "rank 2", "unbatched"],
    ),
    "h0 dtype": (
        lambda m: m(x(), (states(dtype=torch.float64), states())),
        ValueError,
        ["h0", "float32", "float64"],
    ),
    "c0 dtype": (
        lambda m: m(x(), (states(), states(dtype=torch.int64))),
        ValueError,
        ["c0", "float32", "int64"],
    ),
    "c0 device": (lambda m: m(x(), (states(), states(device="meta"))), RuntimeError, ["c0", "cpu", "meta"]),
    "hx one tensor": (lambda m: m(x(), states()), TypeError, ["hx", "pair", "one tensor"]),
    "hx triple": (lambda m: m(x(), (states(), states(), states())), TypeError, ["hx", "pair", "tuple of 3"]),
    "hx half": (lambda m: m(x(), (states(), None)), TypeError, ["hx", "pair", "NoneType"]),
    "packed h0": (lambda m: m(packed(), (states(2, 5, H), states())), ValueError, ["h0", "(2, 3, 6)"]),
    "packed hx": (lambda m: m(packed(), states()), TypeError, ["hx", "pair"]),
    "long lengths": (lambda m: m(x(), lengths=lengths(1, 6, 2)), ValueError, ["lengths", "T=5", "6"]),
    "negative lengths": (lambda m: m(x(), lengths=lengths(1, -1, 2)), ValueError, ["lengths", "-1"]),
    "lengths count": (lambda m: m(x(), lengths=lengths(1, 2)), ValueError, ["lengths", "(3,)", "(2,)"]),
    "lengths rank": (lambda m: m(x(), lengths=lengths(1, 2, 3)[None]), ValueError, ["lengths", "(1, 3)"]),
    "lengths int32": (
        lambda m: m(x(), lengths=lengths(1, 2, 3).int()),
        ValueError,
        ["lengths", "int64", "int32"],
    ),
    "lengths float": (lambda m: m(x(), lengths=lengths(1, 2, 3).float()), ValueError, ["lengths", "int64"]),
    "lengths list": (lambda m: m(x(), lengths=[1, 2, 3]), TypeError, ["lengths", "list"]),
    "lengths device": (
        lambda m: m(x(), lengths=lengths(1, 2, 3).to("meta")),
        RuntimeError,
        ["lengths", "cpu", "meta"],
    ),
    "lengths packed": (
        lambda m: m(packed(), lengths=lengths(1, 2, 3)),
        ValueError,
        ["lengths", "PackedSequence"],
    ),
    "reset shape": (lambda m: m(x(), reset=reset(B, T)), ValueError, ["reset", "(5, 3)", "(3, 5)"]),
    "reset rank": (lambda m: m(x(), reset=reset(T)), ValueError, ["reset", "(5, 3)", "(5,)"]),
    "reset dtype": (lambda m: m(x(), reset=reset().float()), ValueError, ["reset", "bool", "float32"]),
    "reset list": (lambda m: m(x(), reset=[True] * T), TypeError, ["reset", "list"]),
    "reset device": (lambda m: m(x(), reset=reset().to("meta")), RuntimeError, ["reset", "cpu", "meta"]),
    "reset packed": (lambda m: m(packed(), reset=reset()), ValueError, ["reset", "PackedSequence"]),
}


def clear(error: BaseException, words: list[str]) -> None:
    """The message has the essential words and reads as a sentence."""
    message = str(error)
    assert all(word in message for word in words), message
    assert message.endswith("."), message
    assert "\n" not in message and len(message) < 300, message


@pytest.mark.parametrize("name", BAD)
def test_bad_call(name: str) -> None:
    call, kind, words = BAD[name]
    layer = cnnlstm_fast.LSTM(I, H, 2)
    good = layer(x())[0]
    with pytest.raises(kind) as caught:
        call(layer)
    assert type(caught.value) is kind
    clear(caught.value, words)
    assert torch.equal(layer(x())[0], good)


def weights(count: int = 4) -> list[Tensor]:
    return [x(4 * H, I), x(4 * H, H), x(4 * H), x(4 * H)][:count]


def lstm(w: list[Tensor], **kwargs: Any) -> Any:
    return cnnlstm_fast.lstm(x(), None, w, **kwargs)


BAD_WEIGHTS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "none": (lambda: lstm([]), ValueError, ["weights", "4", "got 0"]),
    "too few": (lambda: lstm(weights(3)), ValueError, ["weights", "4", "got 3"]),
    "two layers": (lambda: lstm(weights(), num_layers=2), ValueError, ["weights", "8", "num_layers=2"]),
    "no layers": (lambda: lstm(weights(), num_layers=0), ValueError, ["num_layers=0"]),
    "without bias": (lambda: lstm(weights(), bias=False), ValueError, ["weights", "2", "bias=False"]),
    "directions": (lambda: lstm(weights(), bidirectional=True), ValueError, ["weights", "8", "2 direction"]),
    "projection": (lambda: lstm(weights(), proj_size=2), ValueError, ["weights", "5", "proj_size=2"]),
    "proj as wide": (lambda: lstm([*weights(), x(H, H)], proj_size=H), ValueError, ["proj_size", "6"]),
    "negative proj": (lambda: lstm(weights(), proj_size=-1), ValueError, ["proj_size", "-1"]),
    "w_ih rank": (lambda: lstm([x(4 * H), *weights()[1:]]), ValueError, ["w_ih", "(24,)"]),
    "w_ih rows": (lambda: lstm([x(7, I), *weights()[1:]]), ValueError, ["w_ih", "(7, 4)"]),
    "w_hh shape": (
        lambda: lstm([weights()[0], x(4 * H, 5), *weights()[2:]]),
        ValueError,
        ["w_hh", "layer 0", "(24, 6)", "(24, 5)"],
    ),
    "bias shape": (lambda: lstm([*weights(3), x(5)]), ValueError, ["b_hh", "(24,)", "(5,)"]),
    "mixed dtype": (lambda: lstm([*weights(3), x(24).double()]), ValueError, ["b_hh", "float32", "float64"]),
    "mixed device": (lambda: lstm([*weights(3), x(24).to("meta")]), RuntimeError, ["b_hh", "cpu", "meta"]),
    "not tensors": (lambda: lstm([[1.0], [2.0], [3.0], [4.0]]), TypeError, ["weights", "list"]),
    "dropout": (lambda: lstm(weights(), dropout=1.5), ValueError, ["dropout", "1.5"]),
    "negative dropout": (lambda: lstm(weights(), dropout=-0.1), ValueError, ["dropout", "-0.1"]),
    "second layer": (
        lambda: lstm([*weights(), *weights()], num_layers=2),
        ValueError,
        ["w_ih", "layer 1", "(24, 6)", "(24, 4)"],
    ),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(name: str) -> None:
    call, kind, words = BAD_WEIGHTS[name]
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    clear(caught.value, words)


def test_batch_first_speaks_of_the_callers_shapes() -> None:
    layer = cnnlstm_fast.LSTM(I, H, batch_first=True)
    with pytest.raises(ValueError) as caught:
        layer(x(B, T, I), reset=reset(T, B))
    clear(caught.value, ["reset", "batch_first"])
    with pytest.raises(ValueError) as caught:
        layer(x(B, T, 9))
    clear(caught.value, ["input", "4 features", "9"])


def test_construction_fails_as_nn_lstm_does() -> None:
    for arguments in [dict(hidden_size=0), dict(proj_size=H), dict(dropout=2.0), dict(num_layers=0)]:
        with pytest.raises(ValueError) as theirs:
            nn.LSTM(**(dict(input_size=I, hidden_size=H) | arguments))
        with pytest.raises(ValueError) as ours:
            cnnlstm_fast.LSTM(**(dict(input_size=I, hidden_size=H) | arguments))
        assert str(ours.value) == str(theirs.value)


def test_split_weights_by_layer_and_direction() -> None:
    layers = split_weights(list(range(20)), num_layers=2, directions=2)
    assert [w.w_ih for pair in layers for w in pair] == [0, 5, 10, 15]
    assert layers[1][0] == (10, 11, 12, 13, 14)
    assert split_weights([1, 2, 3], 1, 1)[0][0] == (1, 2, None, None, 3)
    assert split_weights([1, 2], 1, 1)[0][0] == (1, 2, None, None, None)


def test_spec_of_a_call() -> None:
    data = make(Case(T=7, B=3, I=5, H=4, layers=2, bidirectional=True, proj=2, kind="lengths+reset"))
    leaves = [t.requires_grad_() for t in data.leaves]
    given, hx, w = data.view(leaves)
    options = dict(data.case.options, dropout=0.5, lengths=data.lengths, reset=data.reset, all_cells=True)
    spec = spec_of(given, hx, w, **options)
    assert (spec.T, spec.B, spec.input_size, spec.hidden_size, spec.proj_size) == (7, 3, 5, 4, 2)
    assert spec.directions == 2 and spec.dtype == torch.float64 and spec.device == "cpu"
    assert spec.lengths and spec.reset and spec.dropout and spec.all_cells and spec.grad
    assert not spec.packed and not spec.tracing
    for word in ("T=7", "B=3", "I=5", "H=4", "P=2", "L=2", "float64", "lengths", "reset", "bidirectional"):
        assert word in str(spec)
    with torch.no_grad():
        assert not spec_of(given, hx, w, **options).grad


def test_spec_of_other_forms() -> None:
    layer = nn.LSTM(I, H, 1, dtype=torch.float32)
    assert spec_of(packed(), None, layer._flat_weights)[2:4] == (5, 3)
    assert spec_of(packed(), None, layer._flat_weights).packed
    one = spec_of(x(T, I), None, layer._flat_weights)
    assert (one.T, one.B) == (T, 1)
    assert spec_of(x(B, T, I), None, layer._flat_weights, batch_first=True)[2:4] == (T, B)
    assert not spec_of(x(), None, layer._flat_weights, dropout=0.5).dropout
