"""FrameRunner: runs a module that is called for one frame after the other on many frames at once."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from . import guard as guards
from .agreement import first_line
from .plan import Plan
from .record import Record
from .runner import EAGER, Runner, Runs, no_result

MOST_UNFINISHED = 3
"""After so many loops in a row that ended before their last frame, frames are run one by one."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Ahead:
    """The results of a frame and of those that follow it, each to be taken once, in order."""

    def __init__(self, bound: Any, frames: Tensor, results: list[Tensor]) -> None:
        self.bound = bound
        self._frames, self._results = frames, results
        self._next = 0

    def is_next(self, frame: Tensor) -> bool:
        """Whether the frame holds, bit by bit, what the next result was computed of: it may have been edited since,
        also in a way that PyTorch does not count."""
        wanted = self._frames[self._next]
        return frame.shape == wanted.shape and frame.dtype == wanted.dtype and _same_bits(frame, wanted)

    def take(self) -> tuple[Tensor, ...]:
        """The next results, in memory of their own, which the caller may edit or resize."""
        self._next += 1
        return tuple([result[self._next - 1].clone() for result in self._results])

    @property
    def finished(self) -> bool:
        return self._next == len(self._frames)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


class FrameRunner(Runner):
    """A runner that, asked for one frame, computes also those that follow in its tensor, by one call of the module, and
    keeps their results until they are asked for.

    A result is handed out only for a frame of the same contents, in the thread that asked for the first one, while the
    guard finds the module unchanged. Each thread keeps the results of one loop at most: until all are handed out,
    another frame than the next one is asked for, or the frames' memory is freed. No more rows run in one call than in
    the example's, so that it needs no more memory. Whatever else the module is called with runs as by any runner.
    """

    def __init__(self, plan: Plan, record: Record, structure: str) -> None:
        super().__init__(plan, record, structure)
        self.folds = True
        self._local = threading.local()
        self._refused: set[torch.Size] = set()
        """Shapes of several frames that must run eager."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.folds and len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            found = self._result_of(module, args[0])
            if found is not None:
                return self._result(found)
        return super().__call__(module, args, kwargs)

    def _result_of(self, module: nn.Module, frame: Tensor) -> tuple[Tensor, ...] | None:
        """The module's result as tensors, or None where the frame is to be run alone."""
        kept = self._kept()
        bound = self._settled(module, frame)
        if bound is None:
            kept.clear()
            return None
        memory = frame.untyped_storage()
        ahead: _Ahead | None = kept.get(memory)
        if ahead is None or ahead.bound is not bound or not ahead.is_next(frame):
            kept.clear()
            ahead = self._look_ahead(module, bound, frame)
            if ahead is None:
                return None
            kept[memory] = ahead
        found = ahead.take()
        if ahead.finished:
            kept.clear()
            self._local.unfinished = 0
        return found

    def _kept(self) -> WeakIdKeyDictionary:
        """This thread's results, by the memory of the frames, with which they go."""
        if not hasattr(self._local, "kept"):
            self._local.kept, self._local.unfinished = WeakIdKeyDictionary(), 0
        return self._local.kept

    def _settled(self, module: nn.Module, frame: Tensor) -> Any:
        """What is bound to the module, if this call may run by it."""
        bound = self._bound
        if bound is None or not self.enabled:
            return None
        return bound if bound.gate.enter(module, (frame,)) in (guards.RUN, guards.ADMIT) else None

    def _look_ahead(self, module: nn.Module, bound: Any, frame: Tensor) -> _Ahead | None:
        assert self.record.loop is not None
        following = self.record.loop.from_here(frame)
        if following is None:
            return None
        n = min(len(following), self.record.loop.rows // frame.size(0))
        shape = torch.Size((n * frame.size(0), *frame.shape[1:]))
        if n < 2 or shape in self._refused:
            return None
        if self._local.unfinished == MOST_UNFINISHED:
            self._stop(f"{MOST_UNFINISHED} loops in a row ended before their last frame")
            return None
        frames = following[:n].clone(memory_format=torch.contiguous_format)
        try:
            result = super().__call__(module, (frames.flatten(0, 1),), {})
        except Exception as error:  # such as one of memory; the frame alone may run
            self._stop(f"{type(error).__name__}: {first_line(error)}")
            return None
        if result is EAGER:
            self._refused.add(shape)
            return None
        self._local.unfinished += 1
        tensors = [v for v in pytree.tree_leaves(result) if isinstance(v, Tensor)]
        return _Ahead(bound, frames, [t.unflatten(0, (n, frame.size(0))) for t in tensors])

    def bind(self, module: nn.Module, runs: Runs | None = None) -> None:
        super().bind(module, runs)
        self.quick = no_result

    def _stop(self, reason: str) -> None:
        self.folds = False
        self.note(f"its frames are run one by one: {reason}")
