"""``python -m bench.calibrate.choose``: times a backend against ``aten`` and writes the table that ``auto`` uses.

An interrupted run keeps what it has measured. The next run on the same commit, PyTorch and processor continues from
there, and repeats the calls that other work on the machine disturbed. Kinds of calls that were measured with another
commit, PyTorch or processor start over.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cnnlstm_fast import BACKENDS, _native
from cnnlstm_fast.recurrent.backends import measured
from cnnlstm_fast.recurrent.backends.measured import Estimate, Gpu, Kind, Point, Table
from cnnlstm_fast.recurrent.backends.probe import LOOP
from cnnlstm_fast.recurrent.backends.this_machine import Machine, running
from cnnlstm_fast.timing import paired_ratio

from ..cases import MODES, Call, Case
from ..measure import environment
from ..measure.inline import Inline
from ..measure.runner import LEAST_ROUNDS, Plan, Runner, turn_of
from ..report.record import BUSY, OURS, Row, write_whole

ATEN = f"{OURS}:aten"
STEPS, BATCHES = (1, 8, 64), (1, 4, 16, 64, 256)
HIDDEN = (16, 32, 64, 128, 256, 512, 1024)
WIDE_STEPS, WIDE_BATCHES = (1, 64), (1, 16, 256)
WIDE_HIDDEN, WIDE = (32, 128, 512), 8  # inputs of eight times the hidden size
LARGE_STEPS, LARGE_BATCHES, LARGE_HIDDEN = (1, 8), (1, 16), 2048
COARSE_STEPS, COARSE_BATCHES, COARSE_HIDDEN = (1, 64), (1, 16, 64), (32, 128, 512)
COARSE_WIDE_HIDDEN, COARSE_CELL_HIDDEN = (128,), (16, 128, 1024)
"""Of the part of the grid that is enough for a first table."""
MOST_FLOP = 3.5e10
"""Larger calls are left out: this one takes about a third of a second on two cores, and forty calls are needed."""
CELL_BATCHES, CELL_HIDDEN = (1, 8, 32, 128), (16, 64, 128, 256, 512, 1024)
"""Cells are called in a loop of ``LOOP`` steps."""
GPU_DTYPES, GPU_STEPS, GPU_BATCHES, GPU_HIDDEN = (
    ("f32", "bf16", "fp16"),
    (1, 64),
    (1, 16, 128),
    (64, 128, 256, 1024),
)
STACK = 3
"""Layers of a stack; stacks are a separate kind of calls on a GPU."""


@dataclass(frozen=True)
class Target:
    """A backend to measure, its device and its calls."""

    backend: str
    device: str
    machine: Callable[[], Machine | Gpu]
    grid: Callable[[], Iterator[Call]]
    missing: Callable[[], str | None]
    """Why there is nothing to measure."""
    flop_rate: float
    """A rough rate of the matrix products in FLOP/s, to estimate how long the run takes."""
    launch: Callable[[str], Inline] | None = None
    """Where the candidates run; None: each in its own process."""


def grid() -> Iterator[Call]:
    """All calls that are measured on a CPU: single layers and cells, kind by kind, in random order within a kind, so
    that a drift of the machine's speed does not look like an effect of the size."""
    shapes = [
        *((T, B, H, H) for T, B, H in itertools.product(STEPS, BATCHES, HIDDEN)),
        *((T, B, WIDE * H, H) for T, B, H in itertools.product(WIDE_STEPS, WIDE_BATCHES, WIDE_HIDDEN)),
        *((T, B, LARGE_HIDDEN, LARGE_HIDDEN) for T, B in itertools.product(LARGE_STEPS, LARGE_BATCHES)),
    ]
    random.Random(0).shuffle(shapes)
    for dtype, mode, bidirectional in itertools.product(("f32", "bf16"), MODES, (False, True)):
        for T, B, I, H in shapes:
            name = f"T{T}-B{B}-I{I}-H{H}-D{1 + bidirectional}"
            call = Call(Case(name, T, B, I, H, 1, bidirectional, "choice of a backend"), mode, dtype)
            if flop(call) <= MOST_FLOP and BACKENDS["aten"].supports(call.case.spec(mode, dtype)) is None:
                yield call
    cells = list(itertools.product(CELL_BATCHES, CELL_HIDDEN))
    random.Random(0).shuffle(cells)
    for dtype, mode in itertools.product(("f32", "bf16"), MODES):
        for B, H in cells:
            name = f"cell-B{B}-H{H}"
            case = Case(name, LOOP, B, H, H, 1, False, "choice of a backend", states=True, cell=True)
            if flop(call := Call(case, mode, dtype)) <= MOST_FLOP:
                yield call


def gpu_grid() -> Iterator[Call]:
    """All calls that are measured on a GPU: layers and stacks, padded and packed. The input size is not varied, since
    both backends compute the input's product with the same library."""
    shapes = list(itertools.product(GPU_STEPS, GPU_BATCHES, GPU_HIDDEN))
    random.Random(0).shuffle(shapes)
    variants = itertools.product(GPU_DTYPES, MODES, (False, True), (1, STACK), (False, True))
    for dtype, mode, bidirectional, layers, packed in variants:
        for T, B, H in shapes:
            name = f"T{T}-B{B}-H{H}-D{1 + bidirectional}-L{layers}{'-packed' * packed}"
            lengths = (0.5 if T > 1 else 1.0, 1.0) if packed else None  # packing rejects empty sequences
            case = Case(
                *(name, T, B, H, H, layers, bidirectional, "choice of a backend"),
                lengths=lengths,
                packed=packed,
            )
            yield Call(case, mode, dtype)


def _gpu_target(backend: str) -> Target:
    def missing() -> str | None:
        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} sees no NVIDIA GPU"
        return BACKENDS[backend].supports(next(gpu_grid()).case.spec("inference", "f32", "cuda"))

    return Target(backend, "cuda", lambda: Gpu(torch.cuda.get_device_name()), gpu_grid, missing, 2e13, Inline)


TARGETS = {
    target.backend: target
    for target in (
        Target(
            "cpu",
            "cpu",
            running,
            grid,
            lambda: None if _native.available else _native.reason,
            2e11,
        ),
        _gpu_target("triton"),
        _gpu_target("cuda"),
    )
}


def plan_for(target: Target, seconds: float, threads: int) -> Plan:
    """How the backend is measured against ``aten``."""
    candidates = (f"{OURS}:{target.backend}", ATEN)
    return Plan(candidates, target.device, seconds, threads, check_accuracy=False)


def is_coarse(call: Call) -> bool:
    """Whether a call of ``grid`` is in the coarser grid with which ``cnnlstm-fast calibrate`` begins."""
    c = call.case
    if c.cell:
        return c.H in COARSE_CELL_HIDDEN
    if c.I != c.H:
        return c.H in COARSE_WIDE_HIDDEN and c.B in COARSE_BATCHES
    return c.T in COARSE_STEPS and c.B in COARSE_BATCHES and c.H in COARSE_HIDDEN


def flop(call: Call) -> float:
    """Floating-point operations of its products; a backward pass takes twice those of the forward pass."""
    c = call.case
    once = 8.0 * c.T * c.B * c.H * (c.I + c.H) * c.directions * c.layers
    return once * (3 if call.mode == "training" else 1)


def expected_seconds(call: Call, seconds: float, flop_rate: float, device: str = "cpu") -> float:
    """A rough estimate of how long it takes to measure a call, set-up included."""
    c = call.case
    weights = 4.0 * c.H * (c.I + c.H) * c.directions
    once = 5e-5 + 2e-5 * c.T * c.directions + flop(call) / flop_rate + weights / 3e9
    turn = turn_of(device)
    turns = 2 * max(LEAST_ROUNDS, seconds / turn) * max(1.2 * turn, 2 * once)
    return 0.1 + turns + 4 * (3 * once + weights / 4e7)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a call failed; 2 for misuse; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate.choose", description=__doc__)
    parser.add_argument(
        "--backend", choices=TARGETS, default="cpu", help="the backend to compare with aten (%(default)s)"
    )
    parser.add_argument("--dtype", choices=GPU_DTYPES, help="only these calls")
    parser.add_argument("--mode", choices=MODES, help="only these calls")
    parser.add_argument("--cells", action="store_true", help="only those of cells")
    parser.add_argument("--directions", type=int, choices=(1, 2), help="only these calls")
    parser.add_argument(
        "--seconds", type=float, default=0.25, help="for each backend on each call (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="by default this machine's table in the package"
    )
    args = parser.parse_args(argv)
    target = TARGETS[args.backend]
    try:
        missing = target.missing()
        if missing is not None:
            raise ValueError(f"There is nothing to measure: {missing}.")
        if args.threads < 1:
            raise ValueError(f"--threads: expected 1 or more, got {args.threads}.")
        if args.seconds <= 0:
            raise ValueError(f"--seconds: expected more than 0, got {args.seconds:g}.")
        machine = target.machine()
        if isinstance(machine, Machine):
            machine = machine._replace(threads=args.threads)
        path = args.out or measured.TABLES / target.backend / machine.file
        table = measured.load(path) if path.exists() else Table(machine, {})
        if table.machine != machine:
            raise ValueError(f"{path}: expected a table of {machine}, got one of {table.machine}.")
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no such instruction set
        print(error, file=sys.stderr)
        return 2
    chosen = [
        call
        for call in target.grid()
        if args.dtype in (None, call.dtype)
        and args.mode in (None, call.mode)
        and args.directions in (None, call.case.directions)
        and args.cells <= call.case.cell
    ]
    plan = plan_for(target, args.seconds, args.threads)
    try:
        failed = _measure(target, plan, chosen, table, path)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {path}, and the same command continues from there")
        return 130
    _summarize(table, path)
    return int(failed > 0)


def _measure(target: Target, plan: Plan, chosen: Sequence[Call], table: Table, path: Path) -> int:
    """Measures what the table lacks; returns how many failed."""
    left = missing(chosen, table, plan)
    expected = [expected_seconds(call, plan.seconds, target.flop_rate, plan.device) for call in left]
    ahead = sum(expected)
    print(
        f"{len(left)} of {len(chosen)} calls to measure, about {ahead / 60:.0f} minutes: {path}", flush=True
    )
    start, begun, done, failed = time.monotonic(), 0.0, 0.0, 0
    found = measure_each(target, plan, left, table, path)
    for number, ((row, point), took) in enumerate(zip(found, expected, strict=True), 1):
        done += took
        if number == 1:  # it also starts the processes, so its time predicts nothing
            start, begun = time.monotonic(), done
        pace = (time.monotonic() - start) / (done - begun) if number > 1 else 1.0
        if point is not None:
            figures = f"aten / {target.backend} {point.ratio:.2f}"
        else:
            failed += 1
            figures = f"FAILED: {reasons(row)}"
        remaining = f"{pace * (ahead - done) / 60:.0f} minutes left"
        print(f"{number} of {len(left)}, {remaining}: {row.name}: {figures}", flush=True)
    return failed


def measure_each(
    target: Target, plan: Plan, calls: Sequence[Call], table: Table, path: Path
) -> Iterator[tuple[Row, Point | None]]:
    """Measures call by call, adds each to the table and writes it. A call that failed has no point."""
    made = _facts(plan)
    with Runner(plan, None, target.launch) as runner:
        for call in calls:
            row = runner.measure(call)
            point = None
            if row.measured.keys() == set(plan.candidates):
                point = _point(row, plan.candidates)
                _add(table, call, point, made, plan.device)
                _save(table, path)
            yield row, point


def reasons(row: Row) -> str:
    """Why a call failed."""
    return "; ".join(m.reason for m in row.candidates.values() if m.reason)


def missing(calls: Sequence[Call], table: Table, plan: Plan) -> list[Call]:
    """The calls of which the table has no undisturbed measurement under the same conditions."""
    made = _facts(plan)
    return [call for call in calls if not _known(table, call, made, plan.device)]


def _facts(plan: Plan) -> dict[str, Any]:
    commit, hardware = environment.commit(), environment.hardware()
    return {
        "source": f"measurements of {datetime.now(UTC).date()}",
        "commit": commit["id"],
        "dirty": commit["dirty"],
        "torch": torch.__version__,
        "cpu": hardware["cpu"],
        "seconds": plan.seconds,
    }


def _same(made: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether points of both may be in one kind: everything but the date agrees."""
    return made | {"source": ""} == other | {"source": ""}


def _kind(call: Call, device: str) -> str:
    return measured.kind(call.case.spec(call.mode, call.dtype, device))


def _known(table: Table, call: Call, made: dict[str, Any], device: str) -> bool:
    """Whether the table has an undisturbed measurement of the call under the same conditions."""
    kind = table.kinds.get(_kind(call, device))
    if kind is None or not _same(kind.made, made):
        return False
    size = (call.case.T, call.case.B, call.case.I, call.case.H)
    return any(p[:4] == size and (p.others or 0.0) <= BUSY for p in kind.points)


def _add(table: Table, call: Call, point: Point, made: dict[str, Any], device: str) -> None:
    """Adds the point, or replaces an older one of the same size."""
    name = _kind(call, device)
    kind = table.kinds.get(name)
    kept = (
        [] if kind is None or not _same(kind.made, made) else [p for p in kind.points if p[:4] != point[:4]]
    )
    table.kinds[name] = Kind(made, sorted([*kept, point], key=lambda p: (p.H, p.I, p.B, p.T)))


def _point(row: Row, candidates: Sequence[str]) -> Point:
    ours, aten = (row.candidates[name] for name in candidates)
    assert ours.median_s is not None and aten.median_s is not None
    ratio = paired_ratio(aten.rounds, ours.rounds)
    times = (float(f"{m * 1e6:.4g}") for m in (ours.median_s, aten.median_s))
    ratios = (float(f"{r:.4g}") for r in (ratio.value, ratio.low, ratio.high))
    others = None if row.others is None else round(row.others, 2)
    return Point(row.case.T, row.case.B, row.case.I, row.case.H, *times, *ratios, others)


def _save(table: Table, path: Path) -> None:
    write_whole(path, measured.to_text(table))


def _summarize(table: Table, path: Path) -> None:
    busy = 0
    for name, kind in table.kinds.items():
        slow = sum(Estimate(p.ratio, p.high).slow for p in kind.points)
        busy += sum((p.others or 0.0) > BUSY for p in kind.points)
        print(f"{name}: aten is faster at {slow} of {len(kind.points)} points")
    if busy:
        print(f"Other work disturbed {busy} points: run the same command to repeat them.")
    print(f"table: {path}")


if __name__ == "__main__":
    sys.exit(main())
