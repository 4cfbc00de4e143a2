"""The recurrence of one layer backwards, both directions: gradients of the gates (before their activation), h0 and c0.

Dimensions, blocks and the constexpr WAY as in ``forward.py``. The steps are taken from the last to the first. Step s
needs the gradient of h_s, to which step s+1 adds W_hh^T times its gate gradients:

    "block": they never leave the program;
    "grid": the programs of a batch tile exchange them through ``gate_gradients``, with a barrier after every step;
    "steps": the product is handed over in ``product``.

``kernels/README.md`` derives the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import cell_backward
from .steps import (
    active_at,
    barrier,
    kept_at,
    lengths_of,
    of_direction,
    rows_of,
    split_gates,
    stack_gates,
    time_of,
)


@triton.jit
def load_rows(base, t, columns, exists, width, batch, length, T, B, offsets):
    """Numbers of the step at time t, zero where a sequence has no such step: columns (..., BLOCK_H, 1) of rows
    ``width`` wide -> (..., BLOCK_H, BLOCK_B) float32."""
    active = active_at(t, batch, length, T, B)
    rows = rows_of(tl.maximum(tl.minimum(t, T - 1), 0), batch, B, offsets)
    return tl.load(base + rows * width + columns, mask=exists & active, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T", "B", "N", "k_begin", "k_end"])
def backward_kernel(
    gates,  # (D, N, 4H): activated gates
    cells,  # (D, N, H)
    c0,  # (D, B, H)
    weight_hh,  # (4H, H), of the forward direction
    weight_hh_reverse,  # like it, None where D = 1
    grad_output,  # (N, D*H), or None
    grad_cells,  # (D, N, H), or None
    grad_h,  # (D, B, H) float32: gradient of the state that this launch starts from, and of the one it ends at
    grad_c,  # (D, B, H) float32
    gate_gradients,  # (D, N, 4H): written, zero where a sequence has ended
    lengths,  # (B,) int64, or None
    offsets,  # (T,) int64: first row of a packed sequence's steps, or None
    reset,  # (T, B) uint8, or None
    product,  # (D, B, H) float32: gate gradients of the step before times W_hh, for WAY "steps"
    arrivals,  # (D, tiles) int32, zeros: for WAY "grid"
    T,
    B,
    N,
    H,
    k_begin,  # steps done so far, of T; one more turn, k = T, ends with the gradient of h0
    k_end,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,  # H rounded up to a power of two
    WAY: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products, see tl.dot
):
    unit_block, tile, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    unit = unit_block * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # (BLOCK_H, 1)
    batch = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    gate = tl.arange(0, 4)[:, None, None]
    k = tl.arange(0, BLOCK_K)
    length = lengths_of(batch, T, B, lengths)
    D = tl.num_programs(2)
    N = tl.cast(N, tl.int64)
    dtype = gate_gradients.dtype.element_ty

    exists = unit < H
    own = exists & (batch < B)[None, :]
    state_at = (direction * B + batch)[None, :] * H + unit
    dh = tl.load(grad_h + state_at, mask=own, other=0.0)
    dc = tl.load(grad_c + state_at, mask=own, other=0.0)
    c_first = tl.load(c0 + state_at, mask=own, other=0.0).to(tl.float32)
    if WAY != "steps":
        # (4, BLOCK_H, BLOCK_K): W_hh^T, one matrix per gate
        w = tl.load(
            of_direction(direction, weight_hh, weight_hh_reverse) + (gate * H + k[None, None, :]) * H + unit[None],
            mask=exists[None] & (k < H)[None, None, :],
            other=0.0,
        )

    gates += direction * N * (4 * H)
    cells += direction * N * H
    gate_gradients += direction * N * (4 * H)
    if grad_cells is not None:
        grad_cells += direction * N * H
    if grad_output is not None:
        grad_output += direction * H
    blocks = gate * H + unit[None]  # (4, BLOCK_H, 1)
    previous = tl.zeros((4, BLOCK_H, BLOCK_B), dtype)  # gate gradients of the step taken before this one

    t = time_of(T - 1 - k_begin, direction, T)
    c = load_rows(cells, t, unit, exists, H, batch, length, T, B, offsets)
    gates_next = load_rows(gates, t, blocks, exists[None], 4 * H, batch, length, T, B, offsets)
    # one stage: no load of a step may start before the barrier of the step before
    for n in tl.range(k_begin, k_end, num_stages=1):
        s = T - 1 - n  # -1 in the last turn, in which no sequence is active
        t = time_of(s, direction, T)
        t_before = time_of(s - 1, direction, T)
        t_after = time_of(s + 1, direction, T)
        active = active_at(t, batch, length, T, B)
        kept = kept_at(t, batch, active, B, reset)
        block = gates_next
        gates_next = load_rows(gates, t_before, blocks, exists[None], 4 * H, batch, length, T, B, offsets)
        c_before = load_rows(cells, t_before, unit, exists, H, batch, length, T, B, offsets)
        d_out = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
        if grad_output is not None:
            d_out = load_rows(grad_output, t, unit, exists, D * H, batch, length, T, B, offsets)

        # the gradient of h_s: through step s+1 where the sequence has one, else as it came
        ran = active_at(t_after, batch, length, T, B)
        passed = kept_at(t_after, batch, ran, B, reset)
        if WAY == "steps":
            recurrent = tl.load(product + state_at, mask=own & passed[None, :], other=0.0)
        else:
            if WAY == "grid":
                after = rows_of(tl.maximum(tl.minimum(t_after, T - 1), 0), batch, B, offsets) * (4 * H)
                previous = tl.load(
                    gate_gradients + after[None, None, :] + gate * H + k[None, :, None],
                    mask=(k < H)[None, :, None] & ran[None, None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
            recurrent = tl.sum(tl.dot(w, previous, input_precision=PRECISION), axis=0)
            recurrent = tl.where(passed[None, :], recurrent, 0.0)
        dh = tl.where(ran[None, :], recurrent, dh)

        i, f, g, o = split_gates(block)
        started = active_at(t_before, batch, length, T, B)
        c_prev = tl.where(started[None, :], c_before, c_first)
        d_c = dc
        if grad_cells is not None:
            d_c += load_rows(grad_cells, t, unit, exists, H, batch, length, T, B, offsets)
        d_i, d_f, d_g, d_o, d_c = cell_backward(
            i, f, g, o, c, tl.where(kept[None, :], c_prev, 0.0), dh + d_out, d_c
        )
        dc = tl.where(active[None, :], tl.where(kept[None, :], d_c, 0.0), dc)
        c = c_prev

        found = tl.where(active[None, None, :], stack_gates(d_i, d_f, d_g, d_o), 0.0).to(dtype)
        # packed rows exist only where a sequence has a step
        row = rows_of(tl.maximum(tl.minimum(t, T - 1), 0), batch, B, offsets)
        written = ((batch < B) & (n < T)) if offsets is None else active
        tl.store(
            gate_gradients + row[None, None, :] * (4 * H) + blocks, found, mask=exists[None] & written[None, None, :]
        )
        if WAY == "block":
            previous = found
        if WAY == "grid":
            if n + 1 < k_end:
                programs = tl.num_programs(0)
                barrier(arrivals + direction * tl.num_programs(1) + tile, (n + 1 - k_begin) * programs)

    tl.store(grad_h + state_at, dh, mask=own)
    tl.store(grad_c + state_at, dc, mask=own)
