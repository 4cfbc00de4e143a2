"""What the recurrences share: where a step lies, the four gates of a block, what a step makes of them, and its stores.
Dimensions and blocks as in ``forward.py``.

A direction's steps are numbered in its own order: s = 0 comes first, and its time is t = s, or T-1-s in reverse.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import cell, cell_backward


@triton.jit
def time_of(s, direction, T):
    return s + direction * (T - 1 - 2 * s)


@triton.jit
def rows_of(t, batch, T, B, offsets):
    """Row (BLOCK_B,) int64 of every sequence at time t, or at the nearest that exists; ``offsets`` (T,) is the first
    row of each, None where all have B."""
    t = tl.maximum(tl.minimum(t, T - 1), 0)
    if offsets is None:
        first = tl.cast(t, tl.int64) * B
    else:
        first = tl.load(offsets + t)
    return first + batch


@triton.jit
def active_at(t, batch, length, T, B):
    """Whether each sequence of the block has a step at time t, which may lie outside of 0..T-1."""
    return (batch < B) & (t >= 0) & (t < T) & (t < length)


@triton.jit
def kept_at(t, batch, active, B, reset):
    """Whether the state that enters the step at time t is kept, not reset; ``reset`` (T, B) int32 or None."""
    if reset is None:
        return active
    else:
        return active & (tl.load(reset + tl.cast(t, tl.int64) * B + batch, mask=active, other=0) == 0)


@triton.jit
def lengths_of(batch, T, B, lengths):
    """``lengths`` (B,) int64 or None -> (BLOCK_B,)."""
    if lengths is None:
        return tl.full(batch.shape, T, tl.int64)
    else:
        return tl.load(lengths + batch, mask=batch < B, other=0)


@triton.jit
def load_rows(base, t, columns, exists, width, batch, length, T, B, offsets):
    """Some columns (n, 1) of the step at time t in rows ``width`` wide, zero where a sequence has no such step:
    (n, BLOCK_B)."""
    active = active_at(t, batch, length, T, B)
    rows = rows_of(t, batch, T, B, offsets)
    return tl.load(base + rows[None, :] * width + columns, mask=exists & active[None, :], other=0.0)


@triton.jit
def of_direction(direction, forward, reverse):
    """The pointer that belongs to a direction; ``reverse`` is None where there is one."""
    if reverse is None:
        return forward
    else:
        return tl.where(direction == 0, forward, reverse)


@triton.jit
def load_bias(direction, bias_ih, bias_hh, bias_ih_reverse, bias_hh_reverse, columns, exists):
    """Both biases (4H,) of a direction, summed up: (4*BLOCK_H,) float32; zero where they are None."""
    bias = tl.zeros(columns.shape, tl.float32)
    if bias_ih is not None:
        bias += tl.load(of_direction(direction, bias_ih, bias_ih_reverse) + columns, mask=exists, other=0.0)
        bias += tl.load(of_direction(direction, bias_hh, bias_hh_reverse) + columns, mask=exists, other=0.0)
    return bias


@triton.jit
def gate_columns(unit_block, H, BLOCK_H: tl.constexpr):
    """Where the block's four gates of each unit stand in 4H, and whether the unit exists: (4*BLOCK_H,)."""
    row = tl.arange(0, 4 * BLOCK_H)
    unit = unit_block * BLOCK_H + row % BLOCK_H
    return (row // BLOCK_H) * H + unit, unit < H


@triton.jit
def split_gates(block):
    """(4*BLOCK_H, BLOCK_B) -> i, f, g, o of (BLOCK_H, BLOCK_B), float32."""
    pairs = tl.permute(
        tl.reshape(block.to(tl.float32), (2, 2, block.shape[0] // 4, block.shape[1])), (2, 3, 1, 0)
    )
    i_f, g_o = tl.split(pairs)
    i, f = tl.split(i_f)
    g, o = tl.split(g_o)
    return i, f, g, o


@triton.jit
def join_gates(i, f, g, o):
    """i, f, g, o of (BLOCK_H, BLOCK_B) -> (4*BLOCK_H, BLOCK_B)."""
    pairs = tl.permute(tl.join(tl.join(i, f), tl.join(g, o)), (3, 2, 0, 1))
    return tl.reshape(pairs, (4 * i.shape[0], i.shape[1]))


@triton.jit
def advance(a, c, h, kept, runs):
    """A step: gates before their activation (4*BLOCK_H, BLOCK_B), and the states (BLOCK_H, BLOCK_B) that enter -> the
    activated gates, and the states that leave. Those of a sequence that does not run stay; what is not ``kept``
    enters as zero."""
    i, f, g, o = split_gates(a)
    i, f, g, o, c_new, h_new = cell(i, f, g, o, tl.where(kept, c, 0.0))
    return i, f, g, o, tl.where(runs, c_new, c), tl.where(runs, h_new.to(h.dtype), h)


@triton.jit
def store_step(output, cells, gates, i, f, g, o, c, h, runs, own, rows, unit, direction, D, N, H, offsets):
    """Stores what a step leaves for its caller, zero where a sequence does not run."""
    # packed rows exist only where a sequence has a step
    written = own if offsets is None else runs
    row = rows[None, :]
    unit = unit[:, None]
    tl.store(output + row * (D * H) + direction * H + unit, tl.where(runs, h, 0.0), mask=written)
    if cells is not None:
        tl.store(cells + (direction * N + row) * H + unit, tl.where(runs, c, 0.0), mask=written)
    if gates is not None:
        at = gates + (direction * N + row) * (4 * H) + unit
        tl.store(at, tl.where(runs, i, 0.0), mask=written)
        tl.store(at + H, tl.where(runs, f, 0.0), mask=written)
        tl.store(at + 2 * H, tl.where(runs, g, 0.0), mask=written)
        tl.store(at + 3 * H, tl.where(runs, o, 0.0), mask=written)


@triton.jit
def retreat(i, f, g, o, c, c_prev, dh, dc, d_out, d_cells, kept, active, dtype: tl.constexpr):
    """A step backwards: activated gates, the states c and c_prev, the gradients of both states as they come from the
    step after, and those of the step's own results (any dtype) -> gradients of the gates before their activation
    (4*BLOCK_H, BLOCK_B), zero where a sequence does not run, and of the c that entered."""
    c_prev = tl.where(kept, c_prev.to(tl.float32), 0.0)
    dh += d_out.to(tl.float32)
    d_i, d_f, d_g, d_o, d_c = cell_backward(
        i, f, g, o, c.to(tl.float32), c_prev, dh, dc + d_cells.to(tl.float32)
    )
    found = tl.where(active, join_gates(d_i, d_f, d_g, d_o), 0.0).to(dtype)
    return found, tl.where(active, tl.where(kept, d_c, 0.0), dc)
