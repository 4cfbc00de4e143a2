"""The recurrence of one layer, both directions, by programs that read their weights again in every step: for sizes at
which all programs together cannot hold them. A step is a product with the cell as its epilogue.

Dimensions as in ``forward.py``. An item (unit block, batch tile, direction) of a step is BLOCK_H units of BLOCK_B
sequences. Each program walks over its share of a step's items, then over the next step's. An item waits for those of
the same tile and direction in the step before; as all programs take items in this order, the first that is unfinished
never waits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .barrier import arrive, wait
from .steps import (
    active_at,
    advance,
    gate_columns,
    kept_at,
    lengths_of,
    load_bias,
    load_rows,
    of_direction,
    rows_of,
    store_step,
    time_of,
)


@triton.jit(do_not_specialize=["first_row", "first_row_reverse", "M", "T", "B", "N", "H", "s_begin", "s_end"])
def forward_streamed_kernel(
    gate_inputs,  # (D, M, 4H) float32: W_ih x of the rows from first_row on
    weight_hh,  # (4H, W), zeros behind H, of the forward direction
    weight_hh_reverse,  # like it, None where D = 1
    bias_ih,  # (4H,), None where there are no biases
    bias_hh,
    bias_ih_reverse,
    bias_hh_reverse,
    h_state,  # (2, D, B, W), zeros behind H: h that enters step s in [s % 2]; left for step s_end
    c_state,  # (D, B, H) float32: enters step s_begin, and is left for step s_end
    output,  # (N, D*H): h of every step, zero where a sequence has ended
    cells,  # (D, N, H): c of every step, zero where a sequence has ended, or None
    gates,  # (D, N, 4H): activated gates, zero like cells, or None
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) int32, or None
    arrivals,  # (D, tiles) int32, zeros
    first_row,  # of the forward direction
    first_row_reverse,
    M,
    T,
    B,
    N,
    H,
    s_begin,
    s_end,
    MULTIPLE: tl.constexpr,  # divides H: a power of two, which allows wide loads
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,  # what is multiplied at once
    STAGES: tl.constexpr,  # STAGES - 1 of them are in flight
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    H = H // MULTIPLE * MULTIPLE  # tells the compiler that MULTIPLE divides H
    W = tl.cdiv(H, 16) * 16
    D: tl.constexpr = 1 if weight_hh_reverse is None else 2
    blocks, tiles = tl.cdiv(H, BLOCK_H), tl.cdiv(B, BLOCK_B)
    N = tl.cast(N, tl.int64)
    plane = tl.cast(D, tl.int64) * B * W  # of h_state
    # one stage: no load of an item may start before its barrier
    for s in tl.range(s_begin, s_end, num_stages=1):
        for item in tl.range(tl.program_id(0), D * tiles * blocks, tl.num_programs(0), num_stages=1):
            group = item // blocks  # of those that wait for each other
            unit_block, tile, direction = item % blocks, group % tiles, group // tiles
            unit = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)
            batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
            columns, exists = gate_columns(unit_block, H, BLOCK_H)
            length = lengths_of(batch, T, B, lengths)
            own = (unit < H)[:, None] & (batch < B)[None, :]
            lane = tl.cast(direction, tl.int64) * B + batch  # of a state: (BLOCK_B,)

            t = time_of(s, direction, T)
            active = active_at(t, batch, length, T, B)
            kept = kept_at(t, batch, active, B, reset)
            runs = own & active[None, :]
            first = tl.where(direction == 0, first_row, first_row_reverse)
            x = gate_inputs + (direction * tl.cast(M, tl.int64) - first) * (4 * H)
            sum = load_rows(x, t, columns[:, None], exists[:, None], 4 * H, batch, length, T, B, offsets)
            bias = load_bias(direction, bias_ih, bias_hh, bias_ih_reverse, bias_hh_reverse, columns, exists)
            sum += bias[:, None]
            # only this program reads and writes it
            c_at = c_state + lane[None, :] * H + unit[:, None]
            c = tl.load(c_at, mask=own, other=0.0)

            wait(arrivals + group, s - s_begin, blocks)
            w_rows = of_direction(direction, weight_hh, weight_hh_reverse) + columns[:, None] * W
            entering = h_state + s % 2 * plane + lane[None, :] * W
            for k_begin in tl.range(0, W, BLOCK_K, num_stages=STAGES):
                k = k_begin + tl.arange(0, BLOCK_K)
                w = tl.load(w_rows + k[None, :], mask=exists[:, None] & (k < W)[None, :], other=0.0)
                mask = (k < W)[:, None] & kept[None, :]
                h_part = tl.load(entering + k[:, None], mask=mask, other=0.0, cache_modifier=".cg")
                sum = tl.dot(w, h_part, sum, input_precision=PRECISION)
            # a sequence that has not begun, or has ended, keeps its own
            h = tl.load(entering + unit[:, None], mask=own & ~runs, other=0.0, cache_modifier=".cg")
            i, f, g, o, c, h = advance(sum, c, h, kept[None, :], runs)

            leaving = h_state + (s + 1) % 2 * plane + lane[None, :] * W
            tl.store(leaving + unit[:, None], h, mask=own)
            tl.store(c_at, c, mask=own)
            arrive(arrivals + group)
            rows = rows_of(t, batch, T, B, offsets)
            store_step(
                output, cells, gates, i, f, g, o, c, h, runs, own, rows, unit, direction, D, N, H, offsets
            )
