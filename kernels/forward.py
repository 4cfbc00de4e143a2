"""The recurrence of one layer, both directions.

T steps, B sequences, H hidden_size, W = H rounded up to a multiple of 16, D directions, N rows: T*B, or the sum of all
lengths of a packed sequence; M rows of a direction's gate inputs. A program (unit block, batch tile, direction) computes
BLOCK_H units of BLOCK_B sequences. Blocks lie with units on their first axis and sequences on the last: the weights are
the left factor of the product and stay where they are.

Ways to get the recurrent product, the constexpr WAY:
    "block": one program has all units of its sequences, and h never leaves it;
    "grid": the programs of a batch tile exchange h through ``output``, with a barrier after every step;
    "stream": the same, and the weights are too many to be held: every step reads them anew;
    "steps": it is handed over in ``product``; a launch is one step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import cell
from .steps import (
    STAGES,
    active_at,
    arrive,
    gate_columns,
    kept_at,
    lengths_of,
    load_rows,
    of_direction,
    rows_of,
    split_gates,
    time_of,
    wait,
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
    h0,  # (D, B, H)
    c_state,  # (D, B, H) float32: enters the first step of this launch, and is left by its last one
    h_n,  # (D, B, H), may be h0 itself for WAY "block" and "steps"
    output,  # (N, D*H): h of every step, zero where a sequence has ended
    cells,  # (D, N, H): c of every step, zero where a sequence has ended, or None
    gates,  # (D, N, 4H): activated gates, zero like cells, or None
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) int32, or None
    product,  # (D, B, 4H) float32: W_hh h of the one step of this launch, for WAY "steps"
    arrivals,  # (D, tiles) int32, zeros: for WAY "grid" and "stream"
    first_row,  # of the forward direction
    first_row_reverse,
    M,
    T,
    B,
    N,
    H,
    s_begin,
    s_end,
    MULTIPLE: tl.constexpr,  # H is one of this power of two, which lets wide loads be made
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,  # H rounded up to a power of two; for WAY "stream" what is multiplied at once
    WAY: tl.constexpr,
    CHAINS: tl.constexpr,  # parts of BLOCK_K whose products do not wait for each other
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    H = H // MULTIPLE * MULTIPLE  # which the compiler reads as a promise
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
    state_at = lane[None, :] * H + unit[:, None]

    if WAY != "steps":
        W = tl.cdiv(H, 16) * 16
        w_rows = of_direction(direction, weight_hh, weight_hh_reverse) + columns[:, None] * W
    if WAY == "block" or WAY == "grid":
        part: tl.constexpr = BLOCK_K // CHAINS
        k = tl.arange(0, part)
        w = ()
        for q in tl.static_range(CHAINS):
            held = exists[:, None] & (k < W - q * part)[None, :]
            w += (tl.load(w_rows + q * part + k[None, :], mask=held, other=0.0),)

    h = tl.load(h0 + state_at, mask=own, other=0.0)
    c = tl.load(c_state + state_at, mask=own, other=0.0)
    bias = tl.zeros((4 * BLOCK_H,), tl.float32)
    if bias_ih is not None:
        bias += tl.load(of_direction(direction, bias_ih, bias_ih_reverse) + columns, mask=exists, other=0.0)
        bias += tl.load(of_direction(direction, bias_hh, bias_hh_reverse) + columns, mask=exists, other=0.0)
    first_row = tl.where(direction == 0, first_row, first_row_reverse)
    gate_inputs += (direction * tl.cast(M, tl.int64) - first_row) * (4 * H)
    t = time_of(s_begin, direction, T)
    x_next = load_rows(gate_inputs, t, columns[:, None], exists[:, None], 4 * H, batch, length, T, B, offsets)
    # one stage: no load of a step may start before the barrier of the step before
    for s in tl.range(s_begin, s_end, num_stages=1):
        t = time_of(s, direction, T)
        t_prev = time_of(s - 1, direction, T)
        active = active_at(t, batch, length, T, B)
        kept = kept_at(t, batch, active, B, reset)
        rows = rows_of(t, batch, T, B, offsets)
        x = x_next
        t_next = tl.where(s + 1 < s_end, time_of(s + 1, direction, T), T)
        x_next = load_rows(
            gate_inputs, t_next, columns[:, None], exists[:, None], 4 * H, batch, length, T, B, offsets
        )

        if WAY == "steps":
            at = lane[None, :] * (4 * H) + columns[:, None]
            recurrent = tl.load(product + at, mask=exists[:, None] & kept[None, :], other=0.0)
        else:
            if WAY == "block":
                recurrent = tl.dot(w[0], tl.where(kept[None, :], h, 0.0).to(dtype), input_precision=PRECISION)
            else:
                going = active_at(t_prev, batch, length, T, B)
                before = rows_of(t_prev, batch, T, B, offsets) * (D * H) + direction * H
                passed = (tl.where(going, output, h0) + tl.where(going, before, lane * H))[None, :]
            if WAY == "grid":
                # a zero that the compiler does not know: it would chain products that begin with one that it knows
                zero = tl.zeros((4 * BLOCK_H, BLOCK_B), tl.float32) + direction // 2
                h_parts = ()
                for q in tl.static_range(CHAINS):
                    k = q * part + tl.arange(0, part)
                    mask = (k < H)[:, None] & kept[None, :]
                    h_parts += (tl.load(passed + k[:, None], mask=mask, other=0.0, cache_modifier=".cg"),)
                recurrent = zero
                for q in tl.static_range(CHAINS):
                    recurrent += tl.dot(w[q], h_parts[q], zero, input_precision=PRECISION)
            if WAY == "stream":
                recurrent = tl.zeros((4 * BLOCK_H, BLOCK_B), tl.float32)
                for k_begin in tl.range(0, H, BLOCK_K, num_stages=STAGES):
                    k = k_begin + tl.arange(0, BLOCK_K)
                    w_part = tl.load(w_rows + k[None, :], mask=exists[:, None] & (k < W)[None, :], other=0.0)
                    mask = (k < H)[:, None] & kept[None, :]
                    h_part = tl.load(passed + k[:, None], mask=mask, other=0.0, cache_modifier=".cg")
                    recurrent = tl.dot(w_part, h_part, recurrent, input_precision=PRECISION)
        i, f, g, o = split_gates(x + bias[:, None] + recurrent)
        i, f, g, o, c_new, h_new = cell(i, f, g, o, tl.where(kept[None, :], c, 0.0))

        h_new = h_new.to(dtype)
        runs = own & active[None, :]
        c = tl.where(runs, c_new, c)
        h = tl.where(runs, h_new, h)
        # packed rows exist only where a sequence has a step
        written = own if offsets is None else runs
        row = rows[None, :]
        tl.store(
            output + row * (D * H) + direction * H + unit[:, None], tl.where(runs, h_new, 0.0), mask=written
        )
        if WAY == "grid" or WAY == "stream":
            if s + 1 < s_end:
                arrive(arrivals + direction * tl.num_programs(1) + tile)
        # what nobody waits for
        if cells is not None:
            tl.store(
                cells + (direction * N + row) * H + unit[:, None], tl.where(runs, c_new, 0.0), mask=written
            )
        if gates is not None:
            at = gates + (direction * N + row) * (4 * H) + unit[:, None]
            tl.store(at, tl.where(runs, i, 0.0), mask=written)
            tl.store(at + H, tl.where(runs, f, 0.0), mask=written)
            tl.store(at + 2 * H, tl.where(runs, g, 0.0), mask=written)
            tl.store(at + 3 * H, tl.where(runs, o, 0.0), mask=written)
        if WAY == "grid" or WAY == "stream":
            if s + 1 < s_end:
                programs = tl.num_programs(0)
                wait(arrivals + direction * tl.num_programs(1) + tile, (s + 1 - s_begin) * programs)

    tl.store(c_state + state_at, c, mask=own)
    tl.store(h_n + state_at, h, mask=own)
