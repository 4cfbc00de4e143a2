"""The recurrence of one layer, both directions, by programs that hold their weights.

T steps, B sequences, H hidden_size, W = H rounded up to a multiple of 16, D directions, N rows: T*B, or the sum of all
lengths of a packed sequence; M rows of a direction's gate inputs. A program (unit block, batch tile, direction)
computes BLOCK_H units of BLOCK_B sequences. Blocks lie with units on their first axis and sequences on the last: the
weights are the left factor of the product and stay in place.

The constexpr ALGORITHM says where the recurrent product gets h from:
    "persistent_block": one program has all units of its sequences, and h never leaves it;
    "persistent_grid": the programs of a batch tile exchange h through ``h_state``, with a barrier in every step.
``forward_streamed.py`` is a third.
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
def forward_kernel(
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
    arrivals,  # (D, tiles) int32, zeros: of persistent_grid
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
    BLOCK_K: tl.constexpr,  # H rounded up to a power of two
    ALGORITHM: tl.constexpr,
    CHAINS: tl.constexpr,  # parts of BLOCK_K whose products are independent
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    H = H // MULTIPLE * MULTIPLE  # tells the compiler that MULTIPLE divides H
    W = tl.cdiv(H, 16) * 16
    unit_block, tile, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    unit = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)
    batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    columns, exists = gate_columns(unit_block, H, BLOCK_H)
    length = lengths_of(batch, T, B, lengths)
    D = tl.num_programs(2)
    N = tl.cast(N, tl.int64)
    dtype = output.dtype.element_ty

    own = (unit < H)[:, None] & (batch < B)[None, :]
    lane = tl.cast(direction, tl.int64) * B + batch  # of a state: (BLOCK_B,)
    plane = tl.cast(D, tl.int64) * B * W  # of h_state
    c_at = c_state + lane[None, :] * H + unit[:, None]
    counter = arrivals if arrivals is None else arrivals + direction * tl.num_programs(1) + tile

    w_rows = of_direction(direction, weight_hh, weight_hh_reverse) + columns[:, None] * W
    part: tl.constexpr = BLOCK_K // CHAINS
    k = tl.arange(0, part)
    w = ()
    for q in tl.static_range(CHAINS):
        held = exists[:, None] & (k < W - q * part)[None, :]
        w += (tl.load(w_rows + q * part + k[None, :], mask=held, other=0.0),)

    own_state = h_state + lane[None, :] * W + unit[:, None]
    h = tl.load(own_state + s_begin % 2 * plane, mask=own, other=0.0)
    c = tl.load(c_at, mask=own, other=0.0)
    bias = load_bias(direction, bias_ih, bias_hh, bias_ih_reverse, bias_hh_reverse, columns, exists)
    gate_inputs += (
        direction * tl.cast(M, tl.int64) - tl.where(direction == 0, first_row, first_row_reverse)
    ) * (4 * H)
    t = time_of(s_begin, direction, T)
    x_next = load_rows(gate_inputs, t, columns[:, None], exists[:, None], 4 * H, batch, length, T, B, offsets)
    # one stage: no load of a step may start before the barrier
    for s in tl.range(s_begin, s_end, num_stages=1):
        t = time_of(s, direction, T)
        active = active_at(t, batch, length, T, B)
        kept = kept_at(t, batch, active, B, reset)
        x = x_next
        t_next = tl.where(s + 1 < s_end, time_of(s + 1, direction, T), T)
        x_next = load_rows(
            gate_inputs, t_next, columns[:, None], exists[:, None], 4 * H, batch, length, T, B, offsets
        )

        if ALGORITHM == "persistent_block":
            recurrent = tl.dot(w[0], tl.where(kept[None, :], h, 0.0).to(dtype), input_precision=PRECISION)
        else:
            wait(counter, s - s_begin, tl.num_programs(0))
            entering = h_state + s % 2 * plane + (lane * W)[None, :]
            # a zero that is opaque to the compiler: it would chain products that start from a known zero
            zero = tl.zeros((4 * BLOCK_H, BLOCK_B), tl.float32) + direction // 2
            h_parts = ()
            for q in tl.static_range(CHAINS):
                k = q * part + tl.arange(0, part)
                mask = (k < W)[:, None] & kept[None, :]
                h_parts += (tl.load(entering + k[:, None], mask=mask, other=0.0, cache_modifier=".cg"),)
            recurrent = zero
            for q in tl.static_range(CHAINS):
                recurrent += tl.dot(w[q], h_parts[q], zero, input_precision=PRECISION)
        runs = own & active[None, :]
        i, f, g, o, c, h = advance(x + bias[:, None] + recurrent, c, h, kept[None, :], runs)

        if ALGORITHM == "persistent_grid":
            tl.store(own_state + (s + 1) % 2 * plane, h, mask=own)
            arrive(counter)
        rows = rows_of(t, batch, T, B, offsets)
        store_step(output, cells, gates, i, f, g, o, c, h, runs, own, rows, unit, direction, D, N, H, offsets)

    tl.store(c_at, c, mask=own)
    if ALGORITHM == "persistent_block":
        tl.store(own_state + s_end % 2 * plane, h, mask=own)
