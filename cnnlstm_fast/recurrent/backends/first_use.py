"""The measurement at first use: on a machine without a table of its own, the first call of each size is timed against
``aten`` for about a tenth of a second, and the answer is kept on disk.

Nothing is measured where it could disturb the program or would be disturbed by it (``_disturbs``), for more than a
second at once, or for more than ``Allowance.IN_ALL`` seconds in a process. The shipped tables then decide.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from typing import Any, ClassVar

import torch

from ..canonical import LSTMSpec
from . import aten, calls_here, measured, this_machine
from .base import MeasuredSpeed
from .measured import Estimate, Point
from .probe import expected_seconds, measured_sizes, probe, weight_bytes
from .this_machine import Identity

LEAST_SECONDS = 0.2
"""With less left of the allowance no measurement begins."""
MOST_SECONDS, MOST_BYTES = 0.1, 64 << 20
"""Calls that are expected to take longer, also with few steps, or whose weights are larger are not measured: there is
no time for enough of them, and no memory for copies of the weights and their gradients."""
PATIENCE = 1.0
"""Seconds for which a thread waits for the measurement of another one."""


class Allowance:
    """The seconds that this process may still measure: ``AT_ONCE``, of which use is refilled at the rate ``SHARE``, and
    ``IN_ALL`` in total."""

    AT_ONCE: ClassVar[float] = 1.0
    SHARE: ClassVar[float] = 0.1
    IN_ALL: ClassVar[float] = 5.0

    def __init__(self) -> None:
        self._left, self._in_all, self._then = self.AT_ONCE, self.IN_ALL, time.perf_counter()

    def seconds(self) -> float:
        now = time.perf_counter()
        self._left = min(self.AT_ONCE, self._left + self.SHARE * (now - self._then))
        self._then = now
        return max(0.0, min(self._left, self._in_all))

    def spend(self, seconds: float) -> None:
        self._left -= seconds
        self._in_all -= seconds


allowance = Allowance()
_lock = threading.Lock()
_process = os.getpid()
_left_to_tables: set[tuple[Any, ...]] = set()
"""Calls that could not be measured when they were made: their plans are cached, and what ``explain`` says later must be
what they do."""
_unwritten: set[str] = set()
"""Why measurements could not be written to disk."""


def renew() -> None:
    """Makes this process one that has measured nothing yet; what is known of calls stays."""
    global allowance
    allowance = Allowance()
    _left_to_tables.clear()


def measured_here(spec: LSTMSpec) -> MeasuredSpeed | None:
    """The speed of ``cpu`` by a measurement of this call or of one like it on this machine, which is made if need be;
    None where the tables are to decide."""
    if not (this_machine.learns() and _is_of_interest(spec)):
        return None
    assert spec.B is not None
    machine, kind = this_machine.running(), measured.kind(spec)
    T, layers = measured_sizes(spec)
    name = kind + f" L={layers}" * (layers > 1)
    call = (this_machine.identity(machine), name, T, spec.B, spec.input_size, spec.hidden_size)
    if call in _left_to_tables:
        return None
    point = calls_here.find(*call)
    if point is None and measured.own("cpu", machine, kind) is None:
        point = _ask(spec, *call)
    if point is None:
        _left_to_tables.add(call)
        return None
    return _speed(point, layers)


def _ask(spec: LSTMSpec, here: Identity, name: str, *sizes: int) -> Point | None:
    """Measures the call, if this is the time and the place for it."""
    if _disturbs() or not _lock.acquire(timeout=PATIENCE):
        return None
    try:
        # another thread may have measured it meanwhile
        return calls_here.find(here, name, *sizes) or _measure(spec, here, name)
    finally:
        _lock.release()


def _is_of_interest(spec: LSTMSpec) -> bool:
    """Whether ``aten`` may be the faster one, and a measurement is small. It does not fuse projections and packed
    sequences."""
    if spec.tracing or spec.autocast or spec.proj_size or spec.packed or not spec.T or not spec.B:
        return False
    small = weight_bytes(spec) <= MOST_BYTES and expected_seconds(spec) <= MOST_SECONDS
    return small and aten.BACKEND.supports(spec) is None


def _disturbs() -> bool:
    """Whether other calls of operators here and now would be noticed, or take another time than usual: in a forked
    child, in a mode that sees all operators or all saved tensors (such as checkpointing), in a backward pass, or while
    something is traced."""
    return (
        os.getpid() != _process
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._current_graph_task_id() != -1
        or torch.is_anomaly_enabled()
        or torch.jit.is_tracing()
    )


def _measure(spec: LSTMSpec, here: Identity, name: str) -> Point | None:
    limit = allowance.seconds()
    if limit < LEAST_SECONDS:
        return None
    start = time.perf_counter()
    try:
        point = probe(spec, limit)
    except (RuntimeError, MemoryError) as error:
        warnings.warn(
            f"cnnlstm_fast: the call {spec} could not be measured, and runs as the tables say: {error}",
            stacklevel=2,
        )
        return None
    finally:
        allowance.spend(time.perf_counter() - start)
    if point is not None and (why := calls_here.add(here, name, point)) is not None:
        _unwritten.add(why)
    return point


def _speed(point: Point, layers: int) -> MeasuredSpeed:
    estimate = Estimate(point.ratio, point.high)
    place = f"T={point.T} B={point.B} I={point.I} H={point.H}" + f" L={layers}" * (layers > 1)
    unwritten = "".join(f", but not kept on disk: {why}" for why in sorted(_unwritten))
    return MeasuredSpeed(estimate.slow, f"{estimate}, measured on this machine at {place}{unwritten}")
