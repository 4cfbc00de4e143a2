"""Functions for which ``torch.export`` or an engine takes sizes for fixed, by equal ones for which it does not."""

from __future__ import annotations

from collections.abc import Callable
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
        if function in (F.adaptive_avg_pool2d, F.adaptive_avg_pool3d):
            return _adaptive_avg_pool(function, *args, **kwargs)
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


def _adaptive_avg_pool(function: Callable[..., Tensor], input: Tensor, output_size: Any) -> Tensor:
    """A pooling to one value along some dimensions that leaves the others as they are, as a mean: ONNX and
    TorchInductor have no adaptive pooling to an open size."""
    if isinstance(output_size, (tuple, list)):
        rank = len(output_size)
        sizes = zip(input.shape[-rank:], output_size, strict=True)
        kept = [wanted is None or (type(size) is int and size == wanted) for size, wanted in sizes]
        pooled = [d - rank for d in range(rank) if not kept[d] and output_size[d] == 1]
        if pooled and any(kept) and len(pooled) + sum(kept) == rank:
            return input.mean(pooled, keepdim=True)
    return function(input, output_size)
