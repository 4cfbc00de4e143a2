"""Measures on this machine whether PyTorch's own kernel or this package's runs which LSTM calls faster, for ``auto``.

The table is kept in the user's cache, for this processor, number of threads, PyTorch and version of the kernels, and is
used from the next process on. A coarse grid of sizes comes first, then a finer one while there is time; the same
command continues where the last one ended. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from cnnlstm_fast.recurrent.backends import measured
from cnnlstm_fast.recurrent.backends.measured import Estimate, Table
from cnnlstm_fast.recurrent.backends.this_machine import identity, running

from ..cases import Call
from ..measure.runner import Plan
from ..report.progress import progress_bar
from . import choose

SECONDS = 0.25
"""For each of the two on each call."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.calibrate.command") -> int:
    """Returns the exit status: 0; 1 where a call failed; 2 for misuse; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="about as long as it may take (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    args = parser.parse_args(argv)
    target = choose.TARGETS["cpu"]
    try:
        if (why := target.missing()) is not None:
            raise ValueError(f"There is nothing to measure: {why}.")
        if args.minutes <= 0:
            raise ValueError(f"--minutes: expected more than 0, got {args.minutes:g}.")
        if args.threads < 1:
            raise ValueError(f"--threads: expected 1 or more, got {args.threads}.")
        machine = running()._replace(threads=args.threads)
        path = identity(machine).file("table")
        table = measured.load_from_cache(path) or Table(machine, {})
        plan = choose.plan_for(target, SECONDS, args.threads)
        calls = sorted(
            choose.grid(), key=choose.is_coarse, reverse=True
        )  # each part in the order of the grid
        left = choose.missing(calls, table, plan)
        return _measure(plan, left, table, path, 60 * args.minutes)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no home directory
        print(error, file=sys.stderr)
        return 2


def _measure(plan: Plan, left: Sequence[Call], table: Table, path: Path, seconds: float) -> int:
    """Measures until the time is over, and says in one line what was found."""
    console = Console(stderr=True, highlight=False)
    console.print(
        f"measuring for up to {seconds / 60:.3g} minutes, with {plan.threads} threads", markup=False
    )
    end, done, failed, status = time.monotonic() + seconds, 0, 0, 0
    try:
        with progress_bar(console) as progress:
            task = progress.add_task("", total=len(left))
            for row, point in choose.measure_each(choose.TARGETS["cpu"], plan, left, table, path):
                done += 1
                progress.update(task, advance=1, description=row.name)
                if point is None:
                    failed += 1
                    progress.console.print(f"{row.name} failed: {choose.reasons(row)}", markup=False)
                if time.monotonic() > end:
                    break
    except KeyboardInterrupt:
        status = 130
    points = [point for kind in table.kinds.values() for point in kind.points]
    slow = sum(Estimate(point.ratio, point.high).slow for point in points)
    remaining = len(left) - done
    rest = f" The same command measures the {remaining} calls that are left." if remaining else ""
    print(
        f"{len(points)} calls measured, of which PyTorch's own kernel runs {slow} faster: auto goes by them from now "
        f"on ({path}).{rest}"
    )
    return status or int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
