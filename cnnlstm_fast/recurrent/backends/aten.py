"""PyTorch's own kernel, torch.lstm: oneDNN or MKL on a CPU, cuDNN on an NVIDIA GPU; for a cell torch.lstm_cell."""

from __future__ import annotations

import torch
from torch import Tensor

from ..canonical import LSTMSpec
from .base import Backend, Outputs, without_saved

WRONG_GRADIENTS_FROM = 1024
"""The hidden size from which on oneDNN's bfloat16 backward pass has errors of 100 % (PyTorch 2.13, CPU with AMX, any
T, B and input size; float32 and smaller sizes are correct). PyTorch uses it for packed sequences only if all have the
same length, and never for projections."""


def _supports(spec: LSTMSpec) -> str | None:
    onednn = spec.device == "cpu" and not spec.proj_size and not spec.cell
    if onednn and spec.dtype == torch.bfloat16 and spec.grad and spec.hidden_size >= WRONG_GRADIENTS_FROM:
        return f"oneDNN's bfloat16 gradients are wrong from hidden_size {WRONG_GRADIENTS_FROM} on"
    if spec.lengths:
        return "PyTorch's LSTM takes no lengths"
    if spec.reset:
        return "PyTorch's LSTM takes no reset mask"
    if spec.all_cells:
        return "PyTorch's LSTM keeps only the last cell state"
    if spec.T == 0:
        return "PyTorch's LSTM refuses sequences of no steps"
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
    dropout: float = 0.0,
) -> Outputs:
    directions = 2 if bidirectional else 1
    num_layers = h0.size(0) // directions
    count = len(weights) // num_layers
    bias = count // directions >= 4

    def run(x: Tensor, h: Tensor, c: Tensor, w: list[Tensor], layers: int) -> tuple[Tensor, Tensor, Tensor]:
        # cuDNN saves what its backward pass needs only in training mode
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, h, c, *w))
        train = dropout > 0.0 or (x.is_cuda and wanted)
        if batch_sizes is None:
            return torch.lstm(x, (h, c), w, bias, layers, dropout, train, bidirectional, False)
        return torch.lstm(x, batch_sizes, (h, c), w, bias, layers, dropout, train, bidirectional)

    if dropout_mask is None:
        return without_saved(*run(input, h0, c0, weights, num_layers))

    # torch.lstm has no argument for a mask: run the layers one by one and apply the mask between them
    x, h_n, c_n = input, [], []
    for layer in range(num_layers):
        states = slice(layer * directions, (layer + 1) * directions)
        x = x if layer == 0 else x * dropout_mask[layer - 1]
        x, h, c = run(x, h0[states], c0[states], weights[layer * count : (layer + 1) * count], 1)
        h_n.append(h)
        c_n.append(c)
    return without_saved(x, torch.cat(h_n), torch.cat(c_n))


BACKEND = Backend(
    "aten",
    "PyTorch's own: oneDNN on a CPU, cuDNN on a GPU; for a cell torch.lstm_cell",
    _supports,
    forward=_forward,
    step=torch.lstm_cell,
    own_dropout=True,
)
