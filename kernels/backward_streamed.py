"""The recurrence of one layer backwards, both directions, by programs that read their weights again in every turn.

Dimensions and turns as in ``backward.py``, items and their order as in ``forward_streamed.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .barrier import arrive, wait
from .steps import (
    active_at,
    gate_columns,
    kept_at,
    lengths_of,
    load_rows,
    of_direction,
    retreat,
    rows_of,
    split_gates,
    time_of,
)


@triton.jit(do_not_specialize=["T", "B", "N", "H", "n_begin", "n_end"])
def backward_streamed_kernel(
    gates,  # (D, N, 4H): activated gates
    cells,  # (D, N, H)
    c0,  # (D, B, H)
    weight_hh,  # (4H, W), zeros behind H, of the forward direction
    weight_hh_reverse,  # like it, None where D = 1
    grad_output,  # (N, D*H), or None
    grad_cells,  # (D, N, H), or None
    grad_h,  # (D, B, H) float32: gradient of the state that this launch starts from, and of the one it ends at
    grad_c,  # (D, B, H) float32
    gate_gradients,  # (D, N, 4H): written, zero where a sequence has ended
    exchanged,  # (2, D, B, R), zeros: gate gradients that enter turn n in [n % 2]
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) int32, or None
    arrivals,  # (D, tiles) int32, zeros
    T,
    B,
    N,
    H,
    n_begin,
    n_end,  # of T + 1: the last turn ends with the gradient of h0
    MULTIPLE: tl.constexpr,  # divides H: a power of two, which allows wide loads
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,  # what is multiplied at once
    STAGES: tl.constexpr,  # STAGES - 1 of them are in flight
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    H = H // MULTIPLE * MULTIPLE  # tells the compiler that MULTIPLE divides H
    W, R = tl.cdiv(H, 16) * 16, tl.cdiv(4 * H, 16) * 16
    D: tl.constexpr = 1 if weight_hh_reverse is None else 2
    blocks, tiles = tl.cdiv(H, BLOCK_H), tl.cdiv(B, BLOCK_B)
    N = tl.cast(N, tl.int64)
    plane = tl.cast(D, tl.int64) * B * R  # of what is exchanged
    dtype = gate_gradients.dtype.element_ty
    # a large tile has no registers for its gates during the product
    early: tl.constexpr = BLOCK_H * BLOCK_B < 2048
    # one stage: no load of an item may start before its barrier
    for n in tl.range(n_begin, n_end, num_stages=1):
        for item in tl.range(tl.program_id(0), D * tiles * blocks, tl.num_programs(0), num_stages=1):
            group = item // blocks  # of those that wait for each other
            unit_block, tile, direction = item % blocks, group % tiles, group // tiles
            unit = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # (BLOCK_H, 1)
            batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
            columns, column_exists = gate_columns(unit_block, H, BLOCK_H)
            columns, column_exists = columns[:, None], column_exists[:, None]
            length = lengths_of(batch, T, B, lengths)
            exists = unit < H
            own = exists & (batch < B)[None, :]
            lane = tl.cast(direction, tl.int64) * B + batch  # of a state: (BLOCK_B,)
            state_at = lane[None, :] * H + unit

            s = T - 1 - n  # -1 in the last turn, in which no sequence is active
            t = time_of(s, direction, T)
            t_before = time_of(s - 1, direction, T)
            t_after = time_of(s + 1, direction, T)
            active = active_at(t, batch, length, T, B)
            kept = kept_at(t, batch, active, B, reset)
            ran = active_at(t_after, batch, length, T, B)
            passed = kept_at(t_after, batch, ran, B, reset)
            # the state that enters: of the step before, or the first of all
            started = active_at(t_before, batch, length, T, B)
            before = rows_of(t_before, batch, T, B, offsets)
            own_cells = cells + direction * N * H
            c_source = tl.where(started, own_cells, c0) + tl.where(started, before, lane) * H
            c_prev = tl.load(c_source[None, :] + unit, mask=own, other=0.0)
            c = load_rows(own_cells, t, unit, exists, H, batch, length, T, B, offsets)
            own_gates = gates + direction * N * (4 * H)
            if early:
                a = load_rows(own_gates, t, columns, column_exists, 4 * H, batch, length, T, B, offsets)
            # not converted before the product: a conversion waits for the load
            d_out = tl.zeros((BLOCK_H, BLOCK_B), dtype)
            if grad_output is not None:
                grad = grad_output + direction * H
                d_out = load_rows(grad, t, unit, exists, D * H, batch, length, T, B, offsets)
            d_cells = tl.zeros((BLOCK_H, BLOCK_B), dtype)
            if grad_cells is not None:
                grad = grad_cells + direction * N * H
                d_cells = load_rows(grad, t, unit, exists, H, batch, length, T, B, offsets)
            # only this program reads and writes them
            dc = tl.load(grad_c + state_at, mask=own, other=0.0)
            dh = tl.load(grad_h + state_at, mask=own & ~ran[None, :], other=0.0)

            wait(arrivals + group, n - n_begin, blocks)
            w_hh = of_direction(direction, weight_hh, weight_hh_reverse)
            source = exchanged + n % 2 * plane + (lane * R)[None, :]
            recurrent = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
            for begin in tl.range(0, R, BLOCK_K, num_stages=STAGES):
                row = begin + tl.arange(0, BLOCK_K)
                w_mask, p_mask = (unit < W) & (row < 4 * H)[None, :], (row < R)[:, None] & ran[None, :]
                w = tl.load(w_hh + row[None, :] * W + unit, mask=w_mask, other=0.0)
                p = tl.load(source + row[:, None], mask=p_mask, other=0.0, cache_modifier=".cg")
                recurrent = tl.dot(w, p, recurrent, input_precision=PRECISION)
            # the gradient of h_s: through step s+1 where the sequence has one, else as it came
            dh = tl.where(ran[None, :], tl.where(passed[None, :], recurrent, 0.0), dh)
            if not early:
                a = load_rows(own_gates, t, columns, column_exists, 4 * H, batch, length, T, B, offsets)
            i, f, g, o = split_gates(a)
            found, dc = retreat(
                i, f, g, o, c, c_prev, dh, dc, d_out, d_cells, kept[None, :], active[None, :], dtype
            )

            leaving = exchanged + (n + 1) % 2 * plane + (lane * R)[None, :]
            tl.store(leaving + columns, found, mask=column_exists & (batch < B)[None, :])
            tl.store(grad_c + state_at, dc, mask=own)
            # of the state that a sequence's first step started from
            tl.store(grad_h + state_at, dh, mask=own & (ran & ~active)[None, :])
            arrive(arrivals + group)
            # packed rows exist only where a sequence has a step
            written = ((batch < B) & (n < T)) if offsets is None else active
            row = rows_of(t, batch, T, B, offsets)
            at = gate_gradients + direction * N * (4 * H) + row[None, :] * (4 * H) + columns
            tl.store(at, found, mask=column_exists & written[None, :])
