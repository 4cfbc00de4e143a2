"""The hidden state of every row once more, from what the forward pass kept: before its projection it is not kept.

N rows, H hidden_size, D directions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import hidden


@triton.jit(do_not_specialize=["N", "H"])
def states_kernel(
    gates,  # (D, N, 4H): activated gates
    cells,  # (D, N, H)
    states,  # (N, D*H): written
    N,
    H,
    BLOCK_H: tl.constexpr,
):
    """A program (row, direction)."""
    row, direction = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    D = tl.num_programs(1)
    own = direction * tl.cast(N, tl.int64) + row
    for first in range(0, H, BLOCK_H):
        unit = first + tl.arange(0, BLOCK_H)
        o = tl.load(gates + own * (4 * H) + 3 * H + unit, mask=unit < H, other=0.0).to(tl.float32)
        c = tl.load(cells + own * H + unit, mask=unit < H, other=0.0).to(tl.float32)
        tl.store(states + (row * D + direction) * H + unit, hidden(o, c), mask=unit < H)
