"""The whole stack, forward and backward, layer by layer: the arguments and results of the operator.

T steps, B sequences, I input_size, H hidden_size, P = proj_size or H, L num_layers, D directions, N rows (T*B, or
those of a packed sequence).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from ..recurrent.backends.base import Outputs
from ..recurrent.canonical import LayerWeights, split_weights
from . import layer, projected
from .recurrence import Saved
from .sequence import sequence


def forward(
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
    """The operator ``lstm``."""
    D = 2 if bidirectional else 1
    L, B, P, H = h0.size(0) // D, h0.size(1), h0.size(2), c0.size(2)
    lead = input.shape[:-1]
    at = sequence(input, B, batch_sizes, lengths, reset)
    new = input.new_empty
    output = new((*lead, D * P))
    cells = new((L * D, *lead, H) if for_backward or all_cells else 0)
    gates = new((L * D, *lead, 4 * H) if for_backward else 0)
    hidden = new((L - 1, *lead, D * P) if for_backward else 0)
    if at.N == 0:
        return Outputs(output, h0.clone(), c0.clone(), cells, gates, hidden)
    h0, c0 = h0.contiguous(), c0.contiguous()
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    rows = input.reshape(at.N, -1)
    with _on(input):
        for k, pair in enumerate(split_weights([w.contiguous() for w in weights], L, D)):
            here = slice(k * D, (k + 1) * D)
            saved = Saved(
                cells[here].view(D, at.N, H) if cells.numel() else None,
                gates[here].view(D, at.N, 4 * H) if gates.numel() else None,
            )
            last = k == L - 1
            out = output if last else hidden[k] if for_backward else torch.empty_like(output)
            out = out.view(at.N, D * P)
            h_n[here], c_n[here] = _kind(pair).forward(rows, h0[here], c0[here], pair, out, saved, at)
            rows = out if last else _dropped(out, dropout_mask, k)
    return Outputs(output, h_n, c_n, cells, gates, hidden)


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    output: Tensor,
    cells: Tensor,
    gates: Tensor,
    hidden: Tensor,
    bidirectional: bool,
    input_needs_grad: bool,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The operator ``lstm_backward``."""
    D = 2 if bidirectional else 1
    L, B, P, H = h0.size(0) // D, h0.size(1), h0.size(2), c0.size(2)
    at = sequence(input, B, batch_sizes, lengths, reset)
    grad_h = _float(grad_h_n, h0)
    grad_c = _float(grad_c_n, c0)
    grad_weights: list[Tensor] = [w.new_empty(0) for w in weights]
    if at.N == 0:
        return (
            torch.zeros_like(input) if input_needs_grad else input.new_empty(0),
            grad_h.to(h0.dtype),
            grad_c.to(c0.dtype),
            [torch.zeros_like(w) for w in weights] if weights_need_grad else grad_weights,
        )
    grad_rows = None if grad_output is None else grad_output.reshape(at.N, D * P).contiguous()
    grad_cells = None if grad_cells is None else grad_cells.contiguous()
    h0, c0 = h0.contiguous(), c0.contiguous()
    split = split_weights([w.contiguous() for w in weights], L, D)
    count = len(weights) // L
    with _on(input):
        for k in reversed(range(L)):
            here = slice(k * D, (k + 1) * D)
            out = (output if k == L - 1 else hidden[k]).view(at.N, D * P)
            rows = input if k == 0 else _dropped(hidden[k - 1].view(at.N, D * P), dropout_mask, k - 1)
            gate_gradients, of_weights = _kind(split[k]).backward(
                rows.reshape(at.N, -1),
                h0[here],
                c0[here],
                split[k],
                out,
                Saved(cells[here].view(D, at.N, H), gates[here].view(D, at.N, 4 * H)),
                grad_rows,
                None if grad_cells is None else grad_cells[here].view(D, at.N, H),
                grad_h[here],
                grad_c[here],
                at,
                weights_need_grad,
            )
            if weights_need_grad:
                grad_weights[k * count : (k + 1) * count] = of_weights
            if k > 0:
                grad_rows = _dropped(layer.of_rows(gate_gradients, split[k]), dropout_mask, k - 1)
        grad_input = input.new_empty(0)
        if input_needs_grad:
            grad_input = layer.of_rows(gate_gradients, split[0]).view(input.shape)
    return grad_input, grad_h.to(h0.dtype), grad_c.to(c0.dtype), grad_weights


def _kind(pair: list[LayerWeights]) -> ModuleType:
    return layer if pair[0].w_hr is None else projected


def _dropped(rows: Tensor, dropout_mask: Tensor | None, k: int) -> Tensor:
    """Rows (N, D*P) between layer k and the next."""
    return rows if dropout_mask is None else rows * dropout_mask[k].reshape(rows.shape)


def _float(grad: Tensor | None, like: Tensor) -> Tensor:
    """A float32 copy of a gradient, zeros where it is absent."""
    if grad is None:
        return torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return grad.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels go to the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
