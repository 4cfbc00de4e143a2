"""The recurrence of one layer backwards, both directions: gradients of the gates (before their activation), h0 and c0.

Dimensions, W, blocks and the constexpr WAY as in ``forward.py``. The steps are taken from the last to the first. Step s
needs the gradient of h_s, to which step s+1 adds W_hh^T times its gate gradients:

    "block": they never leave the program;
    "grid": the programs of a batch tile exchange them through ``gate_gradients``, with a barrier after every step;
    "stream": the same, and every step reads the weights anew;
    "steps": the product is handed over in ``product``.

``kernels/README.md`` derives the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import cell_backward
from .steps import (
    STAGES,
    active_at,
    arrive,
    gate_columns,
    join_gates,
    kept_at,
    lengths_of,
    load_rows,
    of_direction,
    rows_of,
    split_gates,
    time_of,
    wait,
)


@triton.jit
def add_product(sum, w, held, p, there, PRECISION: tl.constexpr):
    """sum (n, m) + what lies at w (n, k) times what lies at p (k, m), which other programs have written."""
    w_part = tl.load(w, mask=held, other=0.0)
    p_part = tl.load(p, mask=there, other=0.0, cache_modifier=".cg")
    return tl.dot(w_part, p_part, sum, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T", "B", "N", "H", "k_begin", "k_end"])
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
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) int32, or None
    product,  # (D, B, H) float32: gate gradients of the step before times W_hh, for WAY "steps"
    arrivals,  # (D, tiles) int32, zeros: for WAY "grid" and "stream"
    T,
    B,
    N,
    H,
    k_begin,  # steps done so far, of T; one more turn, k = T, ends with the gradient of h0
    k_end,
    MULTIPLE: tl.constexpr,  # H is one of this power of two, which lets wide loads be made
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,  # H rounded up to a power of two; for WAY "stream" what is multiplied at once
    WAY: tl.constexpr,
    PARTS: tl.constexpr,  # of K, which different warps multiply; for WAY "grid"
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    H = H // MULTIPLE * MULTIPLE  # which the compiler reads as a promise
    unit_block, tile, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    unit = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # (BLOCK_H, 1)
    batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    columns, column_exists = gate_columns(unit_block, H, BLOCK_H)
    length = lengths_of(batch, T, B, lengths)
    D = tl.num_programs(2)
    N = tl.cast(N, tl.int64)
    dtype = gate_gradients.dtype.element_ty

    exists = unit < H
    own = exists & (batch < B)[None, :]
    lane = tl.cast(direction, tl.int64) * B + batch  # of a state: (BLOCK_B,)
    state_at = lane[None, :] * H + unit
    w_hh = of_direction(direction, weight_hh, weight_hh_reverse)
    if WAY == "block":
        # W_hh^T: (BLOCK_H, 4*BLOCK_K), gate by gate
        j = tl.arange(0, 4 * BLOCK_K)
        p = tl.zeros((4 * BLOCK_H, BLOCK_B), dtype)  # gate gradients of the step taken before
    if WAY == "grid":
        # (PARTS, BLOCK_H, 4*BLOCK_K / PARTS): a product of so few rows is shared out to the warps along K
        part: tl.constexpr = 4 * BLOCK_K // PARTS
        j = tl.arange(0, PARTS)[:, None] * part + tl.arange(0, part)[None, :]
    W = tl.cdiv(H, 16) * 16
    if WAY == "block" or WAY == "grid":
        k = j % BLOCK_K
        gate_row = (j // BLOCK_K) * H + k  # in 4H
        if WAY == "block":
            w = tl.load(w_hh + gate_row[None, :] * W + unit, mask=(unit < W) & (k < H)[None, :], other=0.0)
        else:
            at = gate_row[:, None, :] * W + unit[None]
            w = tl.load(w_hh + at, mask=(unit < W)[None] & (k < H)[:, None, :], other=0.0)

    dh = tl.load(grad_h + state_at, mask=own, other=0.0)
    dc = tl.load(grad_c + state_at, mask=own, other=0.0)

    gates += direction * N * (4 * H)
    cells += direction * N * H
    gate_gradients += direction * N * (4 * H)
    if grad_cells is not None:
        grad_cells += direction * N * H
    if grad_output is not None:
        grad_output += direction * H

    t = time_of(T - 1 - k_begin, direction, T)
    c = load_rows(cells, t, unit, exists, H, batch, length, T, B, offsets).to(tl.float32)
    gates_next = load_rows(
        gates, t, columns[:, None], column_exists[:, None], 4 * H, batch, length, T, B, offsets
    )
    # one stage: no load of a step may start before the barrier of the step before
    for n in tl.range(k_begin, k_end, num_stages=1):
        s = T - 1 - n  # -1 in the last turn, in which no sequence is active
        t = time_of(s, direction, T)
        t_before = time_of(s - 1, direction, T)
        t_after = time_of(s + 1, direction, T)
        active = active_at(t, batch, length, T, B)
        kept = kept_at(t, batch, active, B, reset)
        i, f, g, o = split_gates(gates_next.to(tl.float32))
        t_next = tl.where(n + 1 < k_end, t_before, T)
        gates_next = load_rows(
            gates, t_next, columns[:, None], column_exists[:, None], 4 * H, batch, length, T, B, offsets
        )
        # the state that enters: of the step before, or the first of all
        started = active_at(t_before, batch, length, T, B)
        before = rows_of(t_before, batch, T, B, offsets)
        c_source = tl.where(started, cells, c0) + tl.where(started, before, lane) * H
        c_prev = tl.load(c_source[None, :] + unit, mask=own, other=0.0).to(tl.float32)
        d_out = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
        if grad_output is not None:
            d_out += load_rows(grad_output, t, unit, exists, D * H, batch, length, T, B, offsets)

        # the gradient of h_s: through step s+1 where the sequence has one, else as it came
        ran = active_at(t_after, batch, length, T, B)
        passed = kept_at(t_after, batch, ran, B, reset)
        if WAY == "grid" or WAY == "stream":
            rows = rows_of(t_after, batch, T, B, offsets)
            source = gate_gradients + rows[None, :] * (4 * H)
        if WAY == "grid":
            p = tl.load(
                source[None] + gate_row[:, :, None],
                mask=(k < H)[:, :, None] & ran[None, None, :],
                other=0.0,
                cache_modifier=".cg",
            )
        if WAY == "steps":
            recurrent = tl.load(product + state_at, mask=own & passed[None, :], other=0.0)
        elif WAY == "stream":
            # two sums, of i and f and of g and o: one alone would be a chain of products twice as long
            sum_if = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
            sum_go = sum_if
            for begin in tl.range(0, 2 * H, BLOCK_K, num_stages=STAGES):
                row = begin + tl.arange(0, BLOCK_K)
                w_part, held = w_hh + row[None, :] * W + unit, (unit < W) & (row < 2 * H)[None, :]
                p_part, there = source + row[:, None], (row < 2 * H)[:, None] & ran[None, :]
                sum_if = add_product(sum_if, w_part, held, p_part, there, PRECISION)
                sum_go = add_product(sum_go, w_part + 2 * H * W, held, p_part + 2 * H, there, PRECISION)
            recurrent = sum_if + sum_go
        else:
            recurrent = tl.dot(w, p, input_precision=PRECISION)
            if WAY == "grid":
                recurrent = tl.sum(recurrent, axis=0)
        recurrent = tl.where(passed[None, :], recurrent, 0.0)
        dh = tl.where(ran[None, :], recurrent, dh)

        d_c = dc
        if grad_cells is not None:
            d_c += load_rows(grad_cells, t, unit, exists, H, batch, length, T, B, offsets)
        d_i, d_f, d_g, d_o, d_c = cell_backward(
            i,
            f,
            g,
            o,
            c,
            tl.where(kept[None, :], c_prev, 0.0),
            dh + d_out,
            d_c,
        )
        dc = tl.where(active[None, :], tl.where(kept[None, :], d_c, 0.0), dc)
        c = c_prev

        found = tl.where(active[None, :], join_gates(d_i, d_f, d_g, d_o), 0.0).to(dtype)
        # packed rows exist only where a sequence has a step
        row = rows_of(t, batch, T, B, offsets)
        written = ((batch < B) & (n < T)) if offsets is None else active
        tl.store(
            gate_gradients + row[None, :] * (4 * H) + columns[:, None],
            found,
            mask=column_exists[:, None] & written[None, :],
        )
        if WAY == "block":
            p = found
        if WAY == "grid" or WAY == "stream":
            if n + 1 < k_end:
                counter = arrivals + direction * tl.num_programs(1) + tile
                arrive(counter)
                wait(counter, (n + 1 - k_begin) * tl.num_programs(0))

    # not the expression of before the loop: the compiler would keep its addresses in registers, which are few
    lane = tl.cast(direction, tl.int64) * B + tl.where(k_begin < k_end, batch, 0)
    state_at = lane[None, :] * H + unit
    tl.store(grad_h + state_at, dh, mask=own)
    tl.store(grad_c + state_at, dc, mask=own)
