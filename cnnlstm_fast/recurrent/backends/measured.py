"""The speed of a backend relative to ``aten``, from the tables in ``tables/`` that ``python -m bench.calibrate.choose``
writes, and from the one that ``cnnlstm-fast calibrate`` writes to the user's cache.

There is a folder for each backend, and in it one file for each class of machines that was measured. In a file each
``kind`` of call (dtype, inference or training, directions) has points with the ratio of the time of ``aten`` to that
of the backend. Between points the logarithm of the ratio is interpolated over the logarithms of the sizes; outside
of them the nearest point is used.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..canonical import LSTMSpec
from . import aten, this_machine
from .base import MeasuredSpeed
from .this_machine import ISAS, Machine

TABLES = Path(__file__).parent / "tables"
LEAST_POINTS = 10
"""Of a kind in a table of the user's: an interrupted run leaves fewer, which say too little of the other sizes."""


class Gpu(NamedTuple):
    """A GPU model. Measurements of one model do not apply to another."""

    gpu: str  # its name in CUDA

    def __str__(self) -> str:
        return self.gpu

    @property
    def file(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") + ".json"


class Point(NamedTuple):
    """One measured call."""

    T: int
    B: int
    I: int
    H: int
    ours_us: float | None  # median times; None where only the ratio is known
    aten_us: float | None
    ratio: float  # aten / ours, median over pairs; above 1 ours is faster
    low: float  # its 95 % confidence interval
    high: float
    others: float | None  # cores that other processes used meanwhile


SLOW = 0.97
"""A backend is slow where ``aten`` takes less than this fraction of its time; a smaller gain is not relevant."""


class Estimate(NamedTuple):
    """The ratio of a call, and the upper end of its confidence interval."""

    ratio: float
    high: float

    @property
    def slow(self) -> bool:
        """Whether ``aten`` is faster by more than noise."""
        return self.ratio < SLOW and self.high < 1.0

    def __str__(self) -> str:
        return (
            f"aten is {1 / self.ratio:.2f} times as fast"
            if self.slow
            else f"{self.ratio:.2f} times as fast as aten"
        )


@dataclass(frozen=True)
class Kind:
    """The points of one kind of call."""

    made: dict[str, Any]
    """``source``, which follows "by" in a reason; for measurements also the versions, the hardware and the date."""
    points: Sequence[Point]

    def estimate(self, T: int, B: int, I: int, H: int) -> Estimate:
        ratio, high = _interpolate(self._tree, _place(T, B, I, H))
        return Estimate(math.exp(ratio), math.exp(high))

    def closest(self, T: int, B: int, I: int, H: int) -> Point:
        place = _place(T, B, I, H)
        return min(self.points, key=lambda p: math.dist(_place(*p[:4]), place))

    @cached_property
    def _tree(self) -> Any:
        return _grid([(_place(*p[:4]), (math.log(p.ratio), math.log(p.high))) for p in self.points])


@dataclass(frozen=True)
class Table:
    """The measurements of one backend on one class of machines."""

    machine: Machine | Gpu
    kinds: dict[str, Kind]


def kind(spec: LSTMSpec) -> str:
    """The name of the kind that a call belongs to. On a CPU the time of a stack is that of its layers; cuDNN runs
    layers concurrently, so that stacks are separate kinds on a GPU."""
    on_gpu = spec.device == "cuda"
    mode = "training" if spec.grad else "inference"
    stacked = on_gpu and spec.num_layers > 1
    name = f"{str(spec.dtype).removeprefix('torch.')} {mode}"
    if spec.cell:
        return name + " cell"
    name += f" D={spec.directions}"
    return name + " stacked" * stacked + " packed" * spec.packed


def measured_speed(spec: LSTMSpec, backend: str, on: Callable[[], Machine | Gpu]) -> MeasuredSpeed | None:
    """By the tables of measurements; None where they do not apply. They hold calls without a projection that ``aten``
    supports. In a traced graph the sizes are unknown, and the machine cannot be queried; there, and under autocast, a
    cell is slower for any size."""
    if spec.cell and spec.tracing:
        return MeasuredSpeed(True, "a compiler fuses the operations of aten, but does not see into this one")
    if spec.cell and spec.autocast:
        return MeasuredSpeed(True, "autocast converts the weights for aten once, for this one in every step")
    if spec.tracing or spec.proj_size or aten.BACKEND.supports(spec) is not None:
        return None
    machine, name = on(), kind(spec)
    of_this_machine = own(backend, machine, name)
    table = of_this_machine or nearest(backend, machine, name)
    if table is None and spec.cell and spec.grad:
        return MeasuredSpeed(
            True, "its speed in the training of cells is not known, and often below that of aten"
        )
    if table is None or spec.T is None or spec.B is None:
        return None
    found = table.kinds[name]
    sizes = (spec.T, spec.B, spec.input_size, spec.hidden_size)
    estimate, near = found.estimate(*sizes), found.closest(*sizes)
    where = str(table.machine)
    if table.machine != machine:
        where += f", the nearest to this machine's {machine}"
    elif isinstance(machine, Machine) and table is not of_this_machine:
        where += f" of another processor, {found.made.get('cpu', 'unnamed')}"
    place = f"T={near.T} B={near.B} I={near.I} H={near.H}"
    return MeasuredSpeed(estimate.slow, f"{estimate} near {place} by {found.made['source']} ({where})")


def measured_speed_on_gpu(spec: LSTMSpec, backend: str) -> MeasuredSpeed | None:
    """Without measurements, PyTorch's own kernel runs the calls that it supports."""
    known = measured_speed(spec, backend, lambda: Gpu(torch.cuda.get_device_name()))
    if known is None and aten.BACKEND.supports(spec) is None:
        return MeasuredSpeed(True, "nothing is known of its speed on this GPU relative to aten")
    return known


def load(path: Path) -> Table:
    """Raises ValueError if the file is not such a table."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kinds = {
            name: Kind(found["made"], [Point(*row) for row in found["points"]])
            for name, found in document["kinds"].items()
        }
        fields = document["machine"]
        machine = Gpu(**fields) if "gpu" in fields else Machine(**fields)
        if isinstance(machine, Machine):
            ISAS.index(machine.isa)
        return Table(machine, kinds)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a table written by `python -m bench.calibrate.choose`, got something else ({error!r})."
        ) from error


def to_text(table: Table) -> str:
    """The file of a table, with one line for each point."""
    kinds = []
    for name, found in sorted(table.kinds.items()):
        points = ",\n".join(f"    {json.dumps(point)}" for point in found.points)
        made = json.dumps(found.made)
        kinds.append(f'  {json.dumps(name)}: {{\n   "made": {made},\n   "points": [\n{points}\n   ]\n  }}')
    return (
        f'{{\n "machine": {json.dumps(table.machine._asdict())},\n "columns": {json.dumps(Point._fields)},\n'
        ' "kinds": {\n' + ",\n".join(kinds) + "\n }\n}\n"
    )


def load_from_cache(path: Path) -> Table | None:
    """A table in the user's cache, or None where none can be read. A damaged one is ignored with a warning."""
    try:
        return load(path)
    except OSError:
        return None
    except ValueError as error:
        _warn_of_damage(path, str(error))
        return None


@cache
def _warn_of_damage(path: Path, reason: str) -> None:
    warnings.warn(f"cnnlstm_fast: {path} is ignored and measured anew: {reason}", stacklevel=2)


@lru_cache(maxsize=8)
def shipped(folder: Path) -> list[Table]:
    """The tables of one backend that are part of the package."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


calibrated = lru_cache(maxsize=8)(load_from_cache)
"""The table that ``cnnlstm-fast calibrate`` made, read once."""


def own(backend: str, machine: Machine | Gpu, kind: str) -> Table | None:
    """The table with that kind of calls that was measured on this very machine or, of those that are shipped, on a
    machine with the same processor and as many threads."""
    if isinstance(machine, Gpu):
        return None
    if this_machine.learns():
        try:
            table = calibrated(this_machine.identity(machine).file("table"))
        except RuntimeError:  # no home directory
            table = None
        if table is not None and kind in table.kinds and len(table.kinds[kind].points) >= LEAST_POINTS:
            return table
    for table in shipped(TABLES / backend):
        of_this_cpu = kind in table.kinds and table.kinds[kind].made.get("cpu") == this_machine.cpu_name()
        if table.machine == machine and of_this_cpu:
            return table
    return None


def nearest(backend: str, machine: Machine | Gpu, kind: str) -> Table | None:
    """Of the shipped tables with that kind of calls the one of the class nearest to a machine: for CPUs by the
    instruction set first, then by the threads."""
    tables = [table for table in shipped(TABLES / backend) if kind in table.kinds]
    if isinstance(machine, Gpu):
        return next((table for table in tables if table.machine == machine), None)

    def distance(table: Table) -> tuple[int, float]:
        assert isinstance(table.machine, Machine)
        apart = ISAS.index(table.machine.isa) - ISAS.index(machine.isa)
        return abs(apart), abs(math.log2(table.machine.threads / machine.threads))

    return min(tables, key=distance, default=None)


def _place(T: int, B: int, I: int, H: int) -> tuple[float, ...]:
    """The coordinates of a call, the outermost axis first: the tables are grids over I/H, H, B and T, of which points
    may be missing."""
    T, B, I = max(T, 1), max(B, 1), max(I, 1)  # empty calls have no logarithm
    return math.log2(I / H), math.log2(H), math.log2(B), math.log2(T)


class _Axis(NamedTuple):
    """One axis of the grid: at each value the next axis, or the values that are interpolated."""

    values: list[float]
    at: list[Any]


def _grid(entries: Iterable[tuple[tuple[float, ...], Any]]) -> Any:
    branches: dict[float, list[tuple[tuple[float, ...], Any]]] = {}
    for (first, *rest), value in entries:
        branches.setdefault(first, []).append((tuple(rest), value))
    values = sorted(branches)
    leaf = not branches[values[0]][0][0]
    return _Axis(values, [branches[v][0][1] if leaf else _grid(branches[v]) for v in values])


def _interpolate(node: Any, place: Sequence[float]) -> tuple[float, ...]:
    """Linear along each axis in turn, between the two neighbours; constant beyond the last one."""
    if not place:
        found: tuple[float, ...] = node
        return found
    first, rest = place[0], place[1:]
    above = min(bisect_left(node.values, first), len(node.values) - 1)
    after = _interpolate(node.at[above], rest)
    if above == 0 or node.values[above] <= first:
        return after
    before = _interpolate(node.at[above - 1], rest)
    weight = (first - node.values[above - 1]) / (node.values[above] - node.values[above - 1])
    return tuple((1 - weight) * a + weight * b for a, b in zip(before, after, strict=True))
