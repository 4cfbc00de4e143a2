"""The recurrence of one layer backwards, both directions: gradients of the gates (before their activation), h0 and c0;
by programs that hold their weights.

Dimensions, blocks and the constexpr ALGORITHM as in ``forward.py``; R = 4H rounded up to a multiple of 16. The steps
are taken from the last to the first: turn n is step s = T-1-n. It needs the gradient of h_s, to which step s+1 adds
W_hh^T times its gate gradients:

    "persistent_block": they never leave the program;
    "persistent_grid": the programs of a batch tile exchange them through ``exchanged``, with a barrier in every turn.

``kernels/README.md`` derives the formulas.
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
def backward_kernel(
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
    exchanged,  # (2, D, B, R), zeros: gate gradients that enter turn n in [n % 2]; of persistent_grid
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) int32, or None
    arrivals,  # (D, tiles) int32, zeros: of persistent_grid
    T,
    B,
    N,
    H,
    n_begin,
    n_end,  # of T + 1: the last turn ends with the gradient of h0
    MULTIPLE: tl.constexpr,  # divides H: a power of two, which allows wide loads
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,  # H rounded up to a power of two
    ALGORITHM: tl.constexpr,
    PARTS: tl.constexpr,  # of the product's 4*BLOCK_K, which different warps multiply; of persistent_grid
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    H = H // MULTIPLE * MULTIPLE  # tells the compiler that MULTIPLE divides H
    W, R = tl.cdiv(H, 16) * 16, tl.cdiv(4 * H, 16) * 16
    unit_block, tile, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    unit = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # (BLOCK_H, 1)
    batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    columns, column_exists = gate_columns(unit_block, H, BLOCK_H)
    columns, column_exists = columns[:, None], column_exists[:, None]
    length = lengths_of(batch, T, B, lengths)
    D = tl.num_programs(2)
    N = tl.cast(N, tl.int64)
    dtype = gate_gradients.dtype.element_ty

    exists = unit < H
    own = exists & (batch < B)[None, :]
    lane = tl.cast(direction, tl.int64) * B + batch  # of a state: (BLOCK_B,)
    plane = tl.cast(D, tl.int64) * B * R  # of what is exchanged
    state_at = lane[None, :] * H + unit
    counter = arrivals if arrivals is None else arrivals + direction * tl.num_programs(1) + tile
    w_hh = of_direction(direction, weight_hh, weight_hh_reverse)
    if ALGORITHM == "persistent_block":
        # W_hh^T: (BLOCK_H, 4*BLOCK_K), gate by gate, as a program has the gradients
        j = tl.arange(0, 4 * BLOCK_K)
        k = j % BLOCK_K
        gate_row = (j // BLOCK_K) * H + k  # in 4H
        w = tl.load(w_hh + gate_row[None, :] * W + unit, mask=(unit < W) & (k < H)[None, :], other=0.0)
        p = tl.zeros((4 * BLOCK_H, BLOCK_B), dtype)  # gate gradients of the turn before
    else:
        # (PARTS, BLOCK_H, 4*BLOCK_K / PARTS): a product of so few rows is shared out to the warps along 4H
        part: tl.constexpr = 4 * BLOCK_K // PARTS
        j = tl.arange(0, PARTS)[:, None] * part + tl.arange(0, part)[None, :]
        at = j[:, None, :] * W + unit[None]
        w = tl.load(w_hh + at, mask=(unit < W)[None] & (j < 4 * H)[:, None, :], other=0.0)

    dh = tl.load(grad_h + state_at, mask=own, other=0.0)
    dc = tl.load(grad_c + state_at, mask=own, other=0.0)

    gates += direction * N * (4 * H)
    cells += direction * N * H
    gate_gradients += direction * N * (4 * H)
    if grad_cells is not None:
        grad_cells += direction * N * H
    if grad_output is not None:
        grad_output += direction * H

    t = time_of(T - 1 - n_begin, direction, T)
    c = load_rows(cells, t, unit, exists, H, batch, length, T, B, offsets).to(tl.float32)
    gates_next = load_rows(gates, t, columns, column_exists, 4 * H, batch, length, T, B, offsets)
    # one stage: no load of a turn may start before the barrier
    for n in tl.range(n_begin, n_end, num_stages=1):
        s = T - 1 - n  # -1 in the last turn, in which no sequence is active
        t = time_of(s, direction, T)
        t_before = time_of(s - 1, direction, T)
        t_after = time_of(s + 1, direction, T)
        active = active_at(t, batch, length, T, B)
        kept = kept_at(t, batch, active, B, reset)
        i, f, g, o = split_gates(gates_next)
        t_next = tl.where(n + 1 < n_end, t_before, T)
        gates_next = load_rows(gates, t_next, columns, column_exists, 4 * H, batch, length, T, B, offsets)
        # the state that enters: of the step before, or the first of all
        started = active_at(t_before, batch, length, T, B)
        before = rows_of(t_before, batch, T, B, offsets)
        c_source = tl.where(started, cells, c0) + tl.where(started, before, lane) * H
        c_prev = tl.load(c_source[None, :] + unit, mask=own, other=0.0).to(tl.float32)
        d_out = tl.zeros((BLOCK_H, BLOCK_B), dtype)
        if grad_output is not None:
            d_out = load_rows(grad_output, t, unit, exists, D * H, batch, length, T, B, offsets)

        # the gradient of h_s: through step s+1 where the sequence has one, else as it came
        ran = active_at(t_after, batch, length, T, B)
        passed = kept_at(t_after, batch, ran, B, reset)
        if ALGORITHM == "persistent_block":
            recurrent = tl.dot(w, p, input_precision=PRECISION)
        else:
            wait(counter, n - n_begin, tl.num_programs(0))
            source = exchanged + n % 2 * plane + (lane * R)[None, None, :]
            there = (j < R)[:, :, None] & ran[None, None, :]
            p = tl.load(source + j[:, :, None], mask=there, other=0.0, cache_modifier=".cg")
            recurrent = tl.sum(tl.dot(w, p, input_precision=PRECISION), axis=0)
        dh = tl.where(ran[None, :], tl.where(passed[None, :], recurrent, 0.0), dh)
        d_cells = tl.zeros((BLOCK_H, BLOCK_B), dtype)
        if grad_cells is not None:
            d_cells = load_rows(grad_cells, t, unit, exists, H, batch, length, T, B, offsets)
        found, dc = retreat(
            i, f, g, o, c, c_prev, dh, dc, d_out, d_cells, kept[None, :], active[None, :], dtype
        )
        c = c_prev

        if ALGORITHM == "persistent_block":
            p = found
        else:
            leaving = exchanged + (n + 1) % 2 * plane + (lane * R)[None, :]
            tl.store(leaving + columns, found, mask=column_exists & (batch < B)[None, :])
            arrive(counter)
        # packed rows exist only where a sequence has a step
        written = ((batch < B) & (n < T)) if offsets is None else active
        row = rows_of(t, batch, T, B, offsets)
        tl.store(
            gate_gradients + row[None, :] * (4 * H) + columns, found, mask=column_exists & written[None, :]
        )

    # not the expression of before the loop: the compiler would keep its addresses in registers, which are few
    lane = tl.cast(direction, tl.int64) * B + tl.where(n_begin < n_end, batch, 0)
    state_at = lane[None, :] * H + unit
    tl.store(grad_h + state_at, dh, mask=own)
    tl.store(grad_c + state_at, dc, mask=own)
