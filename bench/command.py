"""Benchmarks LSTM calls and whole models: this package against PyTorch and the other libraries installed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from .cases import DTYPES, MODES, SUITES, Call, calls, calls_of, of_shape
from .measure import environment
from .measure.candidates import candidate
from .measure.runner import Plan, Runner
from .peers import PEERS
from .report import compare
from .report import screen as table
from .report.progress import progress_bar
from .report.record import OURS, PYTORCH, Record, load, save
from .roofline import peaks

SAVED_EVERY = 60.0  # seconds
SECONDS = {"quick": 0.3, "model": 0.5, "encoder": 0.5}
"""For each candidate on each call; one second in the other suites."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    """Parses the arguments and runs; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    suites = "; ".join(f"{name}: {what}" for name, what in SUITES.items())
    parser.add_argument("--suite", choices=SUITES, default="quick", help=f"{suites} (%(default)s)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only rows whose name contains it")
    parser.add_argument("--mode", choices=MODES, help="only rows of it")
    parser.add_argument("--dtype", choices=DTYPES, help="only rows of it; amp: float32, products in bfloat16")
    parser.add_argument(
        "--shape",
        action="append",
        metavar="T,B,I,H[,L[,D]]",
        help="instead of a suite: a shape, with L layers and D directions; may be repeated",
    )
    parser.add_argument(
        "--peers",
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(PEERS)}, {OURS}:BACKEND; default: all peers, in `quick` those with a "
        f"quick set-up; {PYTORCH} is always included",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda in the suite gpu, else cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--seconds", type=float, help="to time each candidate on each call")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="for the whole run: drop the rows that do not fit",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="fail if a row became slower")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write an HTML page, DIR/index.html")
    parser.add_argument("--list", action="store_true", help="only list the rows")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0; 1 where a row failed or became slower; 2 for misuse; 130 after Ctrl-C."""
    try:
        device = args.device or ("cuda" if args.suite == "gpu" else "cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device: cuda is not available to this PyTorch; measure a CPU suite instead.")
        if args.threads < 1:
            raise ValueError(f"--threads: expected 1 or more, got {args.threads}.")
        if args.seconds is not None and args.seconds <= 0:
            raise ValueError(f"--seconds: expected more than 0, got {args.seconds:g}.")
        if args.budget is not None and args.budget <= 0:
            raise ValueError(f"--budget: expected more than 0, got {args.budget:g}.")
        if args.shape and args.filter:
            raise ValueError(
                "--shape: expected no --filter, which chooses among a suite's rows; drop one of them."
            )
        if args.shape:
            chosen = list(calls_of(map(of_shape, args.shape), device))
        else:
            chosen = calls(args.suite, args.filter, device)
        chosen = [
            call for call in chosen if args.mode in (None, call.mode) and args.dtype in (None, call.dtype)
        ]
        if not chosen:
            asked = {"--filter": args.filter, "--mode": args.mode, "--dtype": args.dtype}
            text = " ".join(f"{name} {value!r}" for name, value in asked.items() if value)
            raise ValueError(f"{text}: no such row in the suite {args.suite}; see --list.")
        names = _candidates(args.peers, quick=args.suite == "quick")
        torch.set_num_threads(args.threads)
        record = Record(
            "shapes" if args.shape else args.suite,
            datetime.now(UTC).isoformat(timespec="seconds"),
            environment.hardware(),
            environment.versions(),
            environment.commit(),
        )
        old = None if args.compare is None else load(args.compare)
        if old is not None:
            compare.check_same_machine(record, old)
        _check_writable(args.json, args.report)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        for case, mode, dtype in chosen:
            print(f"{case.name} {mode} {dtype}: {case.use}")
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    plan = Plan(names, device, args.seconds or SECONDS.get(args.suite, 1.0), args.threads)
    interrupted = not _measure(console, record, plan, chosen, args.budget, args.json)
    if record.disturbance:
        record.notes.append(record.disturbance)
    table.show(console, record)
    if args.json is not None:
        save(record, args.json)
        console.print(f"results: {args.json}", markup=False)
    if args.report is not None:
        from .report import page  # draws with matplotlib, which the machines that only measure need not have

        console.print(f"page: {page.write(record, args.report)}", markup=False)
    slower = old is not None and _compare(console, record, old)
    return 130 if interrupted else int(bool(record.failed) or slower)


def _measure(
    console: Console, record: Record, plan: Plan, chosen: list[Call], budget: float | None, json: Path | None
) -> bool:
    """Fills the record and saves it at intervals; False if it was interrupted, with the rows measured so far."""
    start = saved = time.monotonic()
    try:
        with progress_bar(console) as progress:
            task = progress.add_task("the machine's roofline", total=len(chosen))
            roofline = peaks.measure(plan.device)
            record.roofline = roofline.as_dict()
            with Runner(plan, roofline) as runner:
                record.missing = runner.missing
                for number, call in enumerate(chosen):
                    spent = time.monotonic() - start
                    if budget is not None and spent * (number + 1) > budget * max(number, 1):
                        names = ", ".join(" ".join((c.case.name, c.mode, c.dtype)) for c in chosen[number:])
                        record.notes.append(f"dropped for lack of time: {names}")
                        break
                    progress.update(task, description=f"{call.case.name} {call.mode} {call.dtype}")
                    row = runner.measure(call)
                    record.rows.append(row)
                    progress.console.print(table.line(row))
                    if json is not None and time.monotonic() - saved > SAVED_EVERY:
                        unfinished = f"unfinished: {len(record.rows)} of {len(chosen)} rows"
                        save(replace(record, notes=[*record.notes, unfinished]), json)
                        saved = time.monotonic()
                    progress.advance(task)
    except KeyboardInterrupt:
        record.notes.append(f"interrupted after {len(record.rows)} of {len(chosen)} rows")
        return False
    return True


def _compare(console: Console, record: Record, old: Record) -> bool:
    """Prints the changes; True if a row became slower."""
    try:
        changes = compare.changes(record, old)
    except ValueError as error:
        console.print(f"[red]{error}[/]")
        return True
    slower = [change for change in changes if change.regressed]
    faster = [change for change in changes if change.improved]
    console.print(
        f"compared with {old.datetime} ({(old.commit.get('id') or 'no commit')[:10]}): {len(slower)} of "
        f"{len(changes)} rows became slower, {len(faster)} faster"
    )
    for change in slower:
        console.print(
            f"[red]  {change.name}: {change.factor:.2f} of its speed ({change.old.value:.2f}x PyTorch, now "
            f"{change.new.value:.2f}x)[/]"
        )
    return bool(slower)


def _candidates(peers: str | None, quick: bool) -> list[str]:
    if peers is None:
        wanted = [name for name, peer in PEERS.items() if not (quick and peer.slow_setup)]
    else:
        wanted = [name.strip() for name in peers.split(",") if name.strip()]
    for name in wanted:
        candidate(name)
    return list(dict.fromkeys([OURS, PYTORCH, *wanted]))


def _check_writable(*paths: Path | None) -> None:
    """Checked before the measurement instead of after it."""
    for path in paths:
        if path is not None:
            folder = next(p for p in (path.parent, *path.parent.parents) if p.exists())
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise ValueError(f"{path}: {folder} is not a writable folder.")
