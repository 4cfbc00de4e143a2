"""What the ``cpu`` backend keeps of weights between inference calls, and weights that the caller promises not to edit.

A frozen weight is packed at its next use, and its contents are not compared in every call. Edits that autograd counts
(an optimizer's step, ``weight.mul_()`` under ``no_grad``) are seen nevertheless; what is not seen is
``weight.data[...] = x`` and writing to memory shared with NumPy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _native


def freeze(model: nn.Module) -> None:
    """Freezes the weights that the model's LSTMs and cells have on a CPU now, and none that replaces one later."""
    if _native.available:
        torch.ops.cnnlstm_fast.freeze(_matrices(model))


def thaw(model: nn.Module) -> None:
    """Takes the promise back: later calls see every edit, those made meanwhile included."""
    if _native.available:
        torch.ops.cnnlstm_fast.thaw(_matrices(model))


def is_frozen(layer: nn.Module) -> bool:
    """Whether all of an LSTM's or a cell's weights are frozen."""
    matrices = _matrices(layer)
    return bool(matrices) and _native.available and all(map(torch.ops.cnnlstm_fast.is_frozen, matrices))


def clear_cache() -> None:
    """Frees the memory of what is kept of LSTM weights between inference calls on a CPU (up to twice the size of the
    weights), in this process; the next calls make it anew. What belongs to a deleted model goes with this, or in one of
    the next 32 calls of an LSTM. ``cnnlstm_fast.cli.info()`` shows the size. Choices of engines, which are stored on
    disk, and captured models are not touched."""
    if _native.available:
        torch.ops.cnnlstm_fast.clear_prepacked()


def cache_bytes() -> int:
    """The size of what ``clear_cache`` frees."""
    return int(torch.ops.cnnlstm_fast.prepacked_bytes()) if _native.available else 0


def _matrices(model: nn.Module) -> list[Tensor]:
    """The weights of gates; of a parametrized layer, which computes them anew in every call, none."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (nn.LSTM, nn.LSTMCell))]
    found = [
        weight
        for layer in layers
        for name, weight in layer._parameters.items()
        if weight is not None and name.startswith(("weight_ih", "weight_hh"))
    ]
    return [w for w in found if w.device.type == "cpu" and w.dtype in (torch.float32, torch.bfloat16)]
