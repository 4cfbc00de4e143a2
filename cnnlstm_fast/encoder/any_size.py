"""Functions for which ``torch.export`` or an engine takes sizes for fixed, by equal ones for which it does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class AnySize(TorchFunctionMode):
    """Puts the equal functions into their place while it is entered."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (F.max_pool1d, torch.max_pool1d):
            return _max_pool1d(*args, **{k: v for k, v in kwargs.items() if k != "return_indices"})
        if function is F.adaptive_avg_pool2d:
            return _adaptive_avg_pool2d(*args, **kwargs)
        return function(*args, **kwargs)


def _max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """By a 2-D pooling of a single row, which leaves the length open."""

    def pair(value: Any, other: int) -> tuple[int, int]:
        return (other, value[0] if isinstance(value, (tuple, list)) else value)

    found = F.max_pool2d(
        input.unsqueeze(-2),
        pair(kernel_size, 1),
        pair(stride if stride else kernel_size, 1),
        pair(padding, 0),
        pair(dilation, 1),
        ceil_mode,
    )
    return found.squeeze(-2)


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """A pooling to one row or column that leaves the other dimension as it is, as a mean: ONNX and TorchInductor have
    no adaptive pooling to an open size."""
    if isinstance(output_size, (tuple, list)) and len(output_size) == 2:
        kept = [
            wanted is None or (type(size) is int and size == wanted)
            for size, wanted in zip(input.shape[-2:], output_size, strict=True)
        ]
        for pooled, other in ((0, 1), (1, 0)):
            if output_size[pooled] == 1 and not kept[pooled] and kept[other]:
                return input.mean(pooled - 2, keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)
