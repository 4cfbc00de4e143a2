"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operator: its matrix products, 2*M*N*K each, as of
PyTorch's own operators, whatever backend runs it. Lengths and resets leave no product out."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import torch

COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]


def forward_flops(input: Shape, h0: Shape, c0: Shape, weights: Sequence[Shape], *rest: Any, **_: Any) -> int:
    """Of ``lstm`` with arguments of these shapes: each row of the input, (T, B, I) or (N, I), passes every matrix once."""
    return 2 * prod(input[:-1]) * sum(prod(w) for w in weights if len(w) == 2)


def backward_flops(*args: Any, **_: Any) -> int:
    """Of ``lstm_backward``: for every matrix the product that gives the gradient of what it was multiplied with, and
    the one that gives its own."""
    input, h0, _, weights = args[4:8]
    bidirectional, input_needs_grad, weights_need_grad = args[16:19]
    flops = forward_flops(*args[4:8])
    directions = 2 if bidirectional else 1
    in_first_layer = weights[: len(weights) * directions // h0[0]]
    of_input = forward_flops(input, h0, _, in_first_layer[:: len(in_first_layer) // directions])
    return flops * (1 + weights_need_grad) - (0 if input_needs_grad else of_input)


def count_flops() -> None:
    """Has the counter know the operators from its import on, which takes 0.2 s (it imports Triton) and is therefore not
    done here."""
    if COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AtImport())


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.cnnlstm_fast.lstm)(forward_flops)
    register_flop_formula(torch.ops.cnnlstm_fast.lstm_backward)(backward_flops)


class _AtImport(importlib.abc.MetaPathFinder):
    """Registers the formulas right after the import of the counter. A counter copies the registry when it is made, so
    that a call of the operator would come too late; Python tells of an import only the finders of ``sys.meta_path``."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        loader = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            if module.__name__ == COUNTER:  # some loaders are shared, as that of a zip file
                _register()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
