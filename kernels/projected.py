"""One layer with a projection, h = W_hr m, both directions, run as a layer without one.

From a sequence's second step on W_hh h_{t-1} is (W_hh W_hr) m_{t-1}: the kernels run on m with the product of the two
matrices, and h is one product over all steps. W_hh h0 is added to the gate inputs of each sequence's first step.

T steps, B sequences, I input_size, H hidden_size, P proj_size, D directions, N rows (T*B, or those of a packed
sequence).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recurrent.canonical import LayerWeights
from . import recurrence
from .layer import gate_inputs, of_biases
from .matmul import matmul
from .recurrence import Recurrence, Saved
from .sequence import Chunk, Sequence


def forward(
    rows: Tensor, h0: Tensor, c0: Tensor, pair: list[LayerWeights], out: Tensor, saved: Saved, at: Sequence
) -> tuple[Tensor, Tensor]:
    """rows (N, I), h0 (D, B, P), c0 (D, B, H) -> h_n, c_n; fills out (N, D*P)."""
    D, P, H = len(pair), h0.size(2), c0.size(2)
    firsts = [at.first(d, rows) for d in range(D)]
    entering = [torch.where(_enters(at, d, rows), matmul(h0[d], w.w_hh.t()), 0.0) for d, w in enumerate(pair)]

    def inputs(chunk: Chunk) -> Tensor:
        found = gate_inputs(rows, pair, chunk)
        for part, here, first, added in zip(found, chunk.rows, firsts, entering, strict=True):
            inside = (first >= here.start) & (first < here.stop)
            index = (first - here.start).clamp(0, len(here) - 1)
            part.index_add_(0, index, torch.where(inside.unsqueeze(1), added, 0.0))
        return found

    m = out.new_empty((at.N, D * H))
    m_n, c_n = recurrence.forward(inputs, torch.zeros_like(c0), c0, _recurrent(pair), m, saved, at)
    h_n = torch.empty_like(h0)
    for d, w in enumerate(pair):
        out[:, d * P : (d + 1) * P] = matmul(m[:, d * H : (d + 1) * H], w.w_hr.t())
        h_n[d] = matmul(m_n[d], w.w_hr.t())
    return torch.where(at.some(rows), h_n, h0), c_n


def backward(
    rows: Tensor,
    h0: Tensor,
    c0: Tensor,
    pair: list[LayerWeights],
    out: Tensor,
    saved: Saved,
    grad_out: Tensor | None,
    grad_cells: Tensor | None,
    grad_h: Tensor,
    grad_c: Tensor,
    at: Sequence,
    weights_need_grad: bool,
) -> tuple[Tensor, list[Tensor]]:
    """As ``layer.backward``, with out and grad_out (N, D*P), h0 and grad_h (D, B, P)."""
    D, P, H = len(pair), h0.size(2), c0.size(2)
    some = at.some(rows)
    # a sequence's final h is that of its last step, which is where the other direction starts
    grad_steps = torch.zeros_like(out) if grad_out is None else grad_out.clone()
    grad_m = rows.new_empty((at.N, D * H))
    for d, w in enumerate(pair):
        part = grad_steps[:, d * P : (d + 1) * P]
        part.index_add_(0, at.first(1 - d, rows), torch.where(some, grad_h[d], 0.0).to(part.dtype))
        grad_m[:, d * H : (d + 1) * H] = matmul(part, w.w_hr)
    found = recurrence.backward(
        saved, c0, _recurrent(pair), grad_m, grad_cells, torch.zeros_like(grad_c), grad_c, at
    )
    entered = [torch.where(_enters(at, d, rows), found[d][at.first(d, rows)], 0.0) for d in range(D)]
    for d, w in enumerate(pair):
        grad_h[d] = torch.where(some, matmul(entered[d], w.w_hh), grad_h[d])
    if not weights_need_grad:
        return found, []

    of_weights: list[Tensor] = []
    m = recurrence.states(saved)
    previous_hidden = recurrence.previous_hidden(m, torch.zeros_like(c0), at)
    for d, w in enumerate(pair):
        of_gates, part = found[d].t(), grad_steps[:, d * P : (d + 1) * P]
        joined = matmul(of_gates, previous_hidden[d])
        w_hh = joined @ w.w_hr.t().float() + matmul(entered[d].t(), h0[d])
        w_hr = w.w_hh.t().float() @ joined + matmul(part.t(), m[:, d * H : (d + 1) * H])
        biases = of_biases(found[d], w)
        of_weights += [of_gates @ rows, w_hh.to(rows.dtype), *biases, w_hr.to(rows.dtype)]
    return found, of_weights


def _recurrent(pair: list[LayerWeights]) -> Recurrence:
    joined = [matmul(w.w_hh, w.w_hr).to(w.w_hh.dtype) for w in pair]
    return Recurrence(joined, [w.b_ih for w in pair], [w.b_hh for w in pair])


def _enters(at: Sequence, direction: int, like: Tensor) -> Tensor:
    """Whether h0 contributes to each sequence's first step, (B, 1)."""
    some = at.some(like)
    if at.reset is None:
        return some
    t = at.first_time(direction, like)
    return some & (at.reset[t, torch.arange(at.B, device=like.device)] == 0).unsqueeze(1)
