"""What the tests of the layer as a module share: a small network, and a training step beside PyTorch's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from helpers import eager_copy
from torch import Tensor, nn

from cnnlstm_fast.contract import bound, relative_error


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
