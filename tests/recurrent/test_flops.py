"""What FlopCounterMode counts, against products counted by hand: 2*M*N*K each."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import cnnlstm_fast

T, B, I, H, P = 5, 3, 8, 12, 4
ROWS = T * B
GATES = 4 * H
FIRST = 2 * ROWS * GATES * I  # of the input with a direction's w_ih


def counted(layer: Any, *args: Any, training: bool = False) -> int:
    with FlopCounterMode(display=False) as counter:
        if not training:
            with torch.no_grad():
                layer(*args)
        else:
            found = layer(*args)[0]
            (found if isinstance(found, Tensor) else found.data).sum().backward()
    return counter.get_total_flops()


CASES: dict[
    str, tuple[dict[str, Any], int, int]
] = {  # arguments, products of a pass, of them the input's with w_ih
    "one layer": ({}, FIRST + 2 * ROWS * GATES * H, FIRST),
    "two layers, both directions": (
        {"num_layers": 2, "bidirectional": True},
        2 * FIRST + 2 * (2 * ROWS * GATES * (2 * H)) + 4 * (2 * ROWS * GATES * H),
        2 * FIRST,
    ),
    "projection without biases": (
        {"proj_size": P, "bias": False},
        FIRST + 2 * ROWS * GATES * P + 2 * ROWS * H * P,
        FIRST,
    ),
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "aten", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer(case: str, backend: str) -> None:
    kwargs, once, of_input = CASES[case]
    layer = cnnlstm_fast.LSTM(I, H, backend=backend, **kwargs)
    x = torch.randn(T, B, I)
    assert counted(layer, x) == once
    assert counted(layer, x, training=True) == once + 2 * once - of_input
    assert counted(layer, x.clone().requires_grad_(), training=True) == once + 2 * once
    layer.requires_grad_(False)
    assert counted(layer, x.clone().requires_grad_(), training=True) == once + once


@pytest.mark.parametrize("backend", ["cpu", "aten"])
def test_packed_rows(backend: str) -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([5, 2, 1]))
    layer = cnnlstm_fast.LSTM(I, H, backend=backend)
    once, of_input = 2 * 8 * GATES * (I + H), 2 * 8 * GATES * I
    assert counted(layer, packed) == once
    assert counted(layer, packed, training=True) == 3 * once - of_input


def test_recompute_counts_the_second_pass() -> None:
    once = CASES["one layer"][1]
    layer = cnnlstm_fast.LSTM(I, H, backend="cpu", recompute=True)
    assert counted(layer, torch.randn(T, B, I, requires_grad=True), training=True) == 4 * once


@pytest.mark.parametrize("backend", ["cpu", "aten"])
def test_a_cell(backend: str) -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)
    x, h, c = torch.randn(B, I), torch.randn(B, H), torch.randn(B, H)
    once = 2 * B * GATES * (I + H)
    assert counted(cell, x, (h, c)) == once
    leaves = [t.clone().requires_grad_() for t in (x, h, c)]
    assert counted(cell, leaves[0], (leaves[1], leaves[2]), training=True) == 3 * once


def test_a_model_beside_its_other_layers() -> None:
    model = cnnlstm_fast.optimize(nn.Sequential(nn.Linear(I, I), nn.LSTM(I, H)))
    assert counted(model, torch.randn(T, B, I)) == 2 * ROWS * I * I + CASES["one layer"][1]


ORDERS = {
    "the package first": """
import cnnlstm_fast
assert "torch.utils.flop_counter" not in sys.modules, "imported by the package"
finders = list(sys.meta_path)
from torch.utils.flop_counter import FlopCounterMode
assert len(sys.meta_path) == len(finders) - 1, "the finder stays"
""",
    "the counter first": """
from torch.utils.flop_counter import FlopCounterMode
import cnnlstm_fast
""",
}


@pytest.mark.parametrize("order", ORDERS)
def test_in_either_order_of_imports(order: str) -> None:
    script = f"""
import sys, torch
{ORDERS[order]}
with torch.no_grad(), FlopCounterMode(display=False) as counter:
    cnnlstm_fast.LSTM({I}, {H})(torch.randn({T}, {B}, {I}))
assert counter.get_total_flops() == {CASES["one layer"][1]}
"""
    subprocess.run([sys.executable, "-c", script], check=True)
