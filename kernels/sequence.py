"""The rows of a call: which sequence has a step at which time, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """Steps from begin to end in the order of each direction, and the rows that they are there."""

    begin: int
    end: int
    rows: list[range]


class Sequence(NamedTuple):
    """Padded rows lie at t*B + b. N = T*B, or the number of rows of a packed sequence."""

    T: int
    B: int
    N: int
    lengths: Tensor | None  # (B,) int64
    offsets: Tensor | None  # (T,) int64: first row of each time of a packed sequence
    reset: Tensor | None  # (T, B) int32
    starts: list[int] | None = None  # the same as offsets on the host, and N as the last: T+1 values

    def row(self, t: int) -> int:
        """First row of time t, which may be T."""
        return t * self.B if self.starts is None else self.starts[t]

    def chunks(self, D: int, rows: int) -> Iterator[Chunk]:
        """All steps in runs of at most so many rows, but of at least one step."""
        steps = max(1, rows // self.B)
        for begin in range(0, self.T, steps):
            end = min(begin + steps, self.T)
            yield Chunk(begin, end, [self.rows_of(begin, end, direction) for direction in range(D)])

    def rows_of(self, begin: int, end: int, direction: int) -> range:
        """Those of a direction's steps from begin to end, in its own order."""
        times = (self.T - end, self.T - begin) if direction else (begin, end)
        return range(*map(self.row, times))

    def first_time(self, direction: int, like: Tensor) -> Tensor:
        """Time (B,) int64 at which each sequence starts in a direction; 0 for one of no steps."""
        if direction == 0:
            return torch.zeros(self.B, dtype=torch.int64, device=like.device)
        if self.lengths is None:
            return torch.full((self.B,), self.T - 1, device=like.device)
        return (self.lengths - 1).clamp(min=0)

    def first(self, direction: int, like: Tensor) -> Tensor:
        """Row (B,) int64 of that step."""
        t = self.first_time(direction, like)
        return (t * self.B if self.offsets is None else self.offsets[t]) + torch.arange(
            self.B, device=like.device
        )

    def some(self, like: Tensor) -> Tensor:
        """Whether each sequence has any steps, (B, 1)."""
        if self.lengths is None:
            return torch.ones((self.B, 1), dtype=torch.bool, device=like.device)
        return (self.lengths > 0).unsqueeze(1)


def sequence(
    input: Tensor, B: int, batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None
) -> Sequence:
    """From the operator's arguments. Nothing is read back from a GPU."""
    if reset is not None:
        # not bytes: the compiler chooses a product's layout by the narrowest type that it depends on
        reset = reset.to(torch.int32, memory_format=torch.contiguous_format)
    if batch_sizes is None:
        T = input.size(0)
        return Sequence(T, B, T * B, None if lengths is None else lengths.contiguous(), None, reset)
    T = batch_sizes.size(0)
    # batch_sizes never grow: as many times have more than b sequences as sequence b has steps
    counts = T - torch.searchsorted(batch_sizes.flip(0).contiguous(), torch.arange(B), right=True)
    both = torch.cat([counts, batch_sizes.cumsum(0) - batch_sizes]).to(input.device, non_blocking=True)
    starts = [0, *accumulate(batch_sizes.tolist())]
    return Sequence(T, B, input.size(0), both[:B], both[B:], reset, starts)
