"""The reference implementation of the operator, written for readability. Plain PyTorch, any floating dtype and device.

Tests compare every backend with this code in float64. It is also the fallback for calls that no faster backend
supports, and the source of double backward. It is differentiable by autograd and never synchronizes with the device.

    i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)        gate order of torch.nn.LSTM
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t), then W_hr h_t where there is a projection

Formulas: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; projection: Sak et al. 2014.

Dimensions: T steps, B sequences, I input_size, H hidden_size, P = proj_size or H, L num_layers, D directions,
N = sum of all lengths (rows of a packed sequence).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .canonical import LayerWeights, split_weights


def lstm(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    bidirectional: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs the whole stack.

    Args:
        input: (T, B, I), or (N, I) with ``batch_sizes``.
        h0, c0: (L*D, B, P) and (L*D, B, H).
        weights: nn.LSTM's flat list: per layer and direction w_ih (4H, I or D*P), w_hh (4H, P),
            then b_ih and b_hh (4H) if there are biases, then w_hr (P, H) if there is a projection.
        batch_sizes: int64 (T,) on the CPU, as in PackedSequence.
        lengths: int64 (B,); steps at or after a sequence's length do not change its state and output zero.
        reset: bool (T, B); where true, the state before step t is zeroed, in each direction in its own order of
            time.
        dropout_mask: (L-1, T, B, D*P), or (L-1, N, D*P) with ``batch_sizes``; already scaled by 1/(1-p).

    Returns:
        output (T, B, D*P) or (N, D*P); h_n (L*D, B, P); c_n (L*D, B, H); and every step's cell state,
        cells (L*D, T, B, H) or (L*D, N, H).
    """
    if batch_sizes is not None:
        return _packed(input, h0, c0, weights, batch_sizes, dropout_mask, bidirectional)
    directions = 2 if bidirectional else 1
    num_layers = h0.size(0) // directions
    x = input
    h_n, c_n, cells = [], [], []
    for layer, pair in enumerate(split_weights(weights, num_layers, directions)):
        if layer > 0 and dropout_mask is not None:
            x = x * dropout_mask[layer - 1]
        outputs = []
        for direction, w in enumerate(pair):
            k = layer * directions + direction
            out, h, c, all_c = _direction(x, h0[k], c0[k], w, lengths, reset, backwards=direction == 1)
            outputs.append(out)
            h_n.append(h)
            c_n.append(c)
            cells.append(all_c)
        x = torch.cat(outputs, dim=-1)
    return x, torch.stack(h_n), torch.stack(c_n), torch.stack(cells)


def cell(x_gates: Tensor, h: Tensor, c: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
    """One step of one layer: x_gates (B, 4H) = W_ih x_t + b_ih + b_hh; h (B, P), c (B, H) -> the next h, c."""
    i, f, g, o = (x_gates + h @ w.w_hh.t()).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.w_hr is None else h @ w.w_hr.t()), c


def _direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: LayerWeights,
    lengths: Tensor | None,
    reset: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer in one direction: x (T, B, I), h (B, P), c (B, H) -> output, h_n, c_n, cells."""
    T = x.size(0)
    x_gates = x @ w.w_ih.t()
    if w.b_ih is not None:
        x_gates = x_gates + w.b_ih + w.b_hh
    if T == 0:  # empty, but part of the autograd graph
        return x_gates[..., : h.size(-1)], h, c, x_gates[..., : c.size(-1)]
    steps = x_gates.unbind()
    outputs, cells = [h.new_zeros(())] * T, [c.new_zeros(())] * T
    for t in reversed(range(T)) if backwards else range(T):
        active = None if lengths is None else (lengths > t).unsqueeze(-1)
        if reset is not None:
            keep = ~reset[t].unsqueeze(-1)
            keep = keep if active is None else keep | ~active
            # where, not a product, which would turn a non-finite state into NaN
            h, c = torch.where(keep, h, 0.0), torch.where(keep, c, 0.0)
        new_h, new_c = cell(steps[t], h, c, w)
        if active is None:
            h, c = new_h, new_c
            outputs[t], cells[t] = h, c
        else:
            h, c = torch.where(active, new_h, h), torch.where(active, new_c, c)
            outputs[t], cells[t] = torch.where(active, new_h, 0.0), torch.where(active, new_c, 0.0)
    return torch.stack(outputs), h, c, torch.stack(cells)


def _packed(
    rows: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor,
    dropout_mask: Tensor | None,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pads the rows (N, I), runs the padded form with lengths, and gathers the rows again."""
    T, B = batch_sizes.size(0), h0.size(1)
    valid = batch_sizes.unsqueeze(1) > torch.arange(B)  # (T, B), true where a row exists
    t, b = (index.to(rows.device) for index in valid.nonzero(as_tuple=True))
    lengths = valid.sum(0).to(rows.device)

    def pad(packed: Tensor) -> Tensor:
        return packed.new_zeros((T, B, packed.size(-1))).index_put((t, b), packed)

    mask = None if dropout_mask is None else torch.stack([pad(layer) for layer in dropout_mask])
    output, h_n, c_n, cells = lstm(pad(rows), h0, c0, weights, None, lengths, None, mask, bidirectional)
    return output[t, b], h_n, c_n, cells[:, t, b]
