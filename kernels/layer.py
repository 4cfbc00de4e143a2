"""One layer without a projection, both directions: the recurrence, and the products around it.

T steps, B sequences, I input_size, H hidden_size, D directions, N rows (T*B, or those of a packed sequence).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..recurrent.canonical import LayerWeights
from . import recurrence
from .matmul import matmul
from .recurrence import Recurrence, Saved
from .sequence import Chunk, Sequence


def gate_inputs(rows: Tensor, pair: list[LayerWeights], chunk: Chunk) -> Tensor:
    """rows (N, I) -> W_ih x of a chunk, (D, M, 4H) float32; M rows of the direction that has the most."""
    M = max(map(len, chunk.rows))
    found = rows.new_empty((len(pair), M, pair[0].w_ih.size(0)), dtype=torch.float32)
    for out, here, w in zip(found, chunk.rows, pair, strict=True):
        matmul(rows[here.start : here.stop], w.w_ih.t(), out=out[: len(here)])
    return found


def forward(
    rows: Tensor, h0: Tensor, c0: Tensor, pair: list[LayerWeights], out: Tensor, saved: Saved, at: Sequence
) -> tuple[Tensor, Tensor]:
    """rows (N, I), h0 and c0 (D, B, H) -> h_n, c_n; fills out (N, D*H)."""
    inputs = partial(gate_inputs, rows, pair)
    return recurrence.forward(inputs, h0, c0, _recurrent(pair), out, saved, at)


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
    """The gate gradients (D, N, 4H) and the gradients of the weights.

    ``grad_h`` and ``grad_c`` (D, B, H) float32 enter as the gradients of h_n and c_n, and leave as those of h0 and c0.
    """
    found = recurrence.backward(saved, c0, _recurrent(pair), grad_out, grad_cells, grad_h, grad_c, at)
    if not weights_need_grad:
        return found, []
    of_weights: list[Tensor] = []
    previous_hidden = recurrence.previous_hidden(out, h0, at)
    for direction, w in enumerate(pair):
        of_gates = found[direction].t()
        of_weights += [
            of_gates @ rows,
            of_gates @ previous_hidden[direction],
            *of_biases(found[direction], w),
        ]
    return found, of_weights


def of_biases(gate_gradients: Tensor, w: LayerWeights) -> list[Tensor]:
    """Gradients of the two biases, which are the same, out of (N, 4H)."""
    if w.b_ih is None:
        return []
    both = gate_gradients.sum(0, dtype=torch.float32).to(gate_gradients.dtype)
    return [both, both.clone()]


def of_rows(gate_gradients: Tensor, pair: list[LayerWeights]) -> Tensor:
    """Gate gradients (D, N, 4H) -> gradient of the rows (N, I)."""
    found = torch.mm(gate_gradients[0], pair[0].w_ih)
    for direction in range(1, len(pair)):
        found.addmm_(gate_gradients[direction], pair[direction].w_ih)
    return found


def _recurrent(pair: list[LayerWeights]) -> Recurrence:
    return Recurrence([w.w_hh for w in pair], [w.b_ih for w in pair], [w.b_hh for w in pair])
