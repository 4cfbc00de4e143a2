"""Region: a part of a model that is pure tensor code, as a graph of PyTorch's ATen operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

_OPERATORS = "getitem add sub mul floordiv truediv mod neg pow eq ne lt le gt ge and_ or_ not_"

SCALAR_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in str.split(_OPERATORS)},
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_float", "sym_int", "sym_max", "sym_min")},
}
"""What a graph may call beside ATen's operators: functions of sizes, and the choice of one result of several."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a region. A dimension is a number where it is fixed, and the name of a symbol where it
    varies from call to call; equal names are equal sizes."""

    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Region:
    """A graph with its weights, ready for an engine.

    ``module`` takes and returns tensors only: its placeholders are the inputs in order, its output is a tuple of
    tensors. A node is a placeholder, a ``get_attr`` of a weight (a detached tensor that shares the Parameter's memory,
    under a name without dots), or a call of

    - ``torch.ops.aten.NAME.OVERLOAD`` that edits nothing and draws no random numbers, as ``torch.export`` records it in
      inference mode: conv2d, batch_norm, relu, linear, max_pool2d, reshape, ... (not decomposed further);
    - ``torch.ops.aten.sym_size.int``, a size as a Python int, and ``SCALAR_FUNCTIONS`` of such ints;
    - ``operator.getitem``, one of several results.
    """

    name: str
    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    modules: tuple[str, ...] = ()
    """The names of the user's modules that it covers."""
    conditions: tuple[str, ...] = ()
    """On the sizes of its inputs, beyond what their names say; as in ``Captured.conditions``."""

    def weights(self) -> dict[str, Tensor]:
        """By their names in ``module``."""
        return dict(self.module.named_buffers())

    def example(self, sizes: Sequence[Sequence[int]], seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of these sizes; integers are zeros and ones, which are valid indices almost everywhere."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(tuple(size), generator=generator).to(spec.dtype)
            if spec.dtype.is_floating_point
            else torch.randint(0, 2, tuple(size), generator=generator).to(spec.dtype)
            for spec, size in zip(self.inputs, sizes, strict=True)
        )
