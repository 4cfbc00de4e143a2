"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operator: its matrix products, 2*M*N*K each, as of
PyTorch's own operators, whatever backend runs it. Lengths and resets leave no product out."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch

from .._on_import import on_import

Shape = Sequence[int]


def forward_flops(input: Shape, h0: Shape, c0: Shape, weights: Sequence[Shape], *rest: Any, **_: Any) -> int:
    """Of ``lstm``, arguments of these shapes: each row of the input, (T, B, I) or (N, I), meets each matrix once."""
    return 2 * prod(input[:-1]) * sum(prod(w) for w in weights if len(w) == 2)


def backward_flops(*args: Any, **_: Any) -> int:
    """Of ``lstm_backward``: for every matrix the product that gives the gradient of what it was multiplied with, and
    the one that gives its own."""
    input, h0, c0, weights = args[4:8]
    bidirectional, input_needs_grad, weights_need_grad = args[16:19]
    flops = forward_flops(*args[4:8])
    directions = 2 if bidirectional else 1
    in_first_layer = weights[: len(weights) * directions // h0[0]]
    of_input = forward_flops(input, h0, c0, in_first_layer[:: len(in_first_layer) // directions])
    return flops * (1 + weights_need_grad) - (0 if input_needs_grad else of_input)


def count_flops() -> None:
    """Has the counter know the operators from its import on. Importing it takes 0.2 s, as it imports Triton, and a call
    of the operator would be too late: a counter copies the table of formulas when it is made."""
    on_import("torch.utils.flop_counter", _register)


def _register(counter: ModuleType) -> None:
    counter.register_flop_formula(torch.ops.cnnlstm_fast.lstm)(forward_flops)
    counter.register_flop_formula(torch.ops.cnnlstm_fast.lstm_backward)(backward_flops)
