"""What both recurrences share: where a step lies, the four gates of a block, and the barrier between programs.
Dimensions and blocks as in ``forward.py``.

A direction's steps are numbered in its own order: s = 0 comes first, and its time is t = s, or T-1-s in reverse.
"""

from __future__ import annotations

import triton
import triton.language as tl

STAGES = tl.constexpr(3)
"""Loads of weights that are on their way while others are multiplied, for WAY "stream"."""


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
    """Whether the state that enters the step at time t lives on; ``reset`` (T, B) int32 or None."""
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
def gate_columns(unit_block, H, BLOCK_H: tl.constexpr):
    """Where the block's four gates of each unit stand in 4H, and whether the unit exists: (4*BLOCK_H,)."""
    row = tl.arange(0, 4 * BLOCK_H)
    unit = unit_block * BLOCK_H + row % BLOCK_H
    return (row // BLOCK_H) * H + unit, unit < H


@triton.jit
def split_gates(block):
    """(4*BLOCK_H, BLOCK_B) -> i, f, g, o of (BLOCK_H, BLOCK_B)."""
    pairs = tl.permute(tl.reshape(block, (2, 2, block.shape[0] // 4, block.shape[1])), (2, 3, 1, 0))
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
def arrive(arrivals):
    """Tells the programs that share the counter ``arrivals`` that this one's stores so far may be read."""
    tl.debug_barrier()  # every thread's stores come before the arrival, which one thread makes
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")


@triton.jit
def wait(arrivals, expected):
    """Waits until the programs that share the counter have arrived ``expected`` times altogether. What each of them
    stored before is then to be seen by the others in loads that go past L1 (".cg").

    All of them must run at once; ``tests/test_triton_barrier.py`` goes through every order in which they can.
    """
    while tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu") < expected:
        pass
    tl.debug_barrier()
