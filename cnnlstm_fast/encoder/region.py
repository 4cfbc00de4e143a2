"""Region: a part of a model that is pure tensor code, as a graph of PyTorch's ATen operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx


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
    - ``torch.ops.aten.sym_size.int``, a size as a Python int, and functions of ``operator`` on such ints.
    """

    name: str
    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    modules: tuple[str, ...] = ()
    """The names of the user's modules that it covers."""

    def weights(self) -> dict[str, Tensor]:
        """By their names in ``module``."""
        return dict(self.module.named_buffers())
