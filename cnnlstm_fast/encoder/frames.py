"""Frames: which pieces of a tensor a loop such as ``for t in range(T): cnn(x[:, t])`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Loop:
    """A loop that calls a module with one frame of a tensor after the other, as the example's call had it.

    The tensor is the one that has the memory, the frames are views of it: x[:, t], x[t], x.unbind(1), the pieces of
    x.split(n, 2), overlapping windows, each also reshaped or transposed.
    """

    dimension: int
    """Along which the frames lie, counted from the tensor's last one: -1."""
    hop: int | None
    """Positions from one frame to the next; None for the width of a frame."""
    calls: int
    """How many frames the example has."""
    rows: int
    """Those of all its frames together; a row is an item of a batch."""
    looped: float | None = None
    """Seconds of the whole model's call with the loop, and with one call of the module instead."""
    folded: float | None = None

    @property
    def gains(self) -> bool:
        """Whether one call was measured to be faster, or nothing was measured yet."""
        return self.looped is None or self.folded is None or self.folded < BETTER * self.looped

    def from_here(self, frame: Tensor) -> Tensor | None:
        """The frame and all that follow it in its tensor, as a view (n, \\*frame.shape); None if it is no frame.

        What follows may be something else where the tensor is itself a part of one, or in inference mode.
        """
        line = self._line(frame) if frame.dim() > 0 and frame.numel() > 0 else None
        if line is None:
            return None
        begin, end, stride, size = line
        extent, start = _extent(frame), frame.storage_offset() - begin
        width = extent // stride % size + 1
        step = (self.hop or width) * stride
        to_come = max(size - start // stride % size - width, 0) * stride // step
        count = min(to_come, (end - begin - start - extent) // step) + 1
        return frame.as_strided((count, *frame.shape), (step, *frame.stride()))

    def _line(self, frame: Tensor) -> tuple[int, int, int, int] | None:
        """The tensor's first and last place in memory; stride and size of the dimension along which the frames lie."""
        whole = frame._base
        if whole is not None:
            if (
                whole.dtype != frame.dtype
                or whole.dim() < -self.dimension
                or whole.stride(self.dimension) == 0
            ):
                return None
            begin = int(whole.storage_offset())
            return begin, begin + _extent(whole), whole.stride(self.dimension), whole.size(self.dimension)
        if not frame.is_inference() or self.hop is not None:
            return None
        # PyTorch does not say of which tensor it is a view: taken for a contiguous one with all of the memory
        memory = frame.untyped_storage().nbytes() // frame.element_size()
        block = 1
        for size, stride in zip(reversed(frame.shape), reversed(frame.stride()), strict=True):
            if stride != block:
                return 0, memory - 1, block, max(stride // block, 1)
            block *= size
        return 0, memory - 1, block, max(memory // block, 1)


BETTER = 0.97
"""One call is preferred to the loop if the model then takes at most this share of the time."""


def _extent(frame: Tensor) -> int:
    """The distance from its first to its last element in memory."""
    return sum((size - 1) * stride for size, stride in zip(frame.shape, frame.stride(), strict=True))


def find(given: Sequence[Tensor]) -> Loop | None:
    """The loop in which a module was given these tensors, one a call, or None.

    It may have run several times, also on several tensors, but always on all frames in order.
    """
    if len(given) < 2 or given[0]._base is None or given[1]._base is not given[0]._base:
        return None
    whole = given[0]._base
    step = given[1].storage_offset() - given[0].storage_offset()
    for dimension in sorted(range(-whole.dim(), 0), key=whole.stride, reverse=True):
        stride = whole.stride(dimension)
        if step <= 0 or stride == 0 or step % stride or step // stride >= whole.size(dimension):
            continue
        hop = step // stride
        width = _extent(given[0]) // stride % whole.size(dimension) + 1
        loop = Loop(dimension, None if hop == width else hop, 0, 0)
        loop.calls = _complete(loop, given)
        loop.rows = loop.calls * given[0].size(0) if given[0].dim() else 0
        return loop if loop.calls >= 2 else None
    return None


def _complete(loop: Loop, given: Sequence[Tensor]) -> int:
    """How many frames the loop's first run has; 0 unless the tensors are those of complete runs."""
    first, done = 0, 0
    while done < len(given):
        frames = loop.from_here(given[done])
        run = given[done : done + len(frames)] if frames is not None else ()
        if frames is None or len(run) < len(frames) or not all(map(_same_place, frames, run)):
            return 0
        first, done = first or len(frames), done + len(frames)
    return first


def _same_place(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
