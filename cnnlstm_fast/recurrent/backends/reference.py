"""The reference implementation as a backend: supports every call and is slow."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..canonical import LSTMSpec
from .base import Backend, Outputs, without_saved


def _supports(spec: LSTMSpec) -> str | None:
    return None


def _forward(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    bidirectional: bool,
    for_backward: bool,
    all_cells: bool,
) -> Outputs:
    # rounding errors of 16-bit states would accumulate over the steps: like in every backend, states are float32
    dtype = torch.float32 if input.dtype in (torch.bfloat16, torch.float16) else input.dtype
    results = reference.lstm(
        input.to(dtype),
        h0.to(dtype),
        c0.to(dtype),
        [w.to(dtype) for w in weights],
        batch_sizes,
        lengths,
        reset,
        None if dropout_mask is None else dropout_mask.to(dtype),
        bidirectional,
    )
    output, h_n, c_n, cells = (result.to(input.dtype) for result in results)
    return without_saved(output, h_n, c_n, cells if all_cells else None)


BACKEND = Backend("reference", "readable PyTorch, one step after the other", _supports, forward=_forward)
