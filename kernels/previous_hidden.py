"""The hidden state that enters every step, as rows: the factor of the gate gradients in the gradient of W_hh.

T steps, B sequences, H hidden_size, D directions, N rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .steps import active_at, kept_at, lengths_of, rows_of, time_of


@triton.jit(do_not_specialize=["T", "B", "N", "H"])
def previous_hidden_kernel(
    output,  # (N, D*H)
    h0,  # (D, B, H)
    previous_hidden,  # (D, N, H): written; zero where the state is reset and where a sequence has ended
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) int32, or None
    T,
    B,
    N,
    H,
    MULTIPLE: tl.constexpr,  # divides H: a power of two, which allows wide loads
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    H = H // MULTIPLE * MULTIPLE  # tells the compiler that MULTIPLE divides H
    s, tile, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    length = lengths_of(batch, T, B, lengths)
    D = tl.num_programs(2)
    t = time_of(s, direction, T)
    t_prev = time_of(s - 1, direction, T)
    active = active_at(t, batch, length, T, B)
    kept = kept_at(t, batch, active, B, reset)
    going = active_at(t_prev, batch, length, T, B)
    before = rows_of(t_prev, batch, T, B, offsets)
    rows = direction * tl.cast(N, tl.int64) + rows_of(t, batch, T, B, offsets)
    written = (batch < B) if offsets is None else active
    for first in range(0, H, BLOCK_H):
        unit = (first + tl.arange(0, BLOCK_H))[None, :]
        exists = unit < H
        passed = output + before[:, None] * (D * H) + direction * H + unit
        first = h0 + (tl.cast(direction, tl.int64) * B + batch)[:, None] * H + unit
        h = tl.load(tl.where(going[:, None], passed, first), mask=exists & kept[:, None], other=0.0)
        tl.store(previous_hidden + rows[:, None] * H + unit, h, mask=exists & written[:, None])
