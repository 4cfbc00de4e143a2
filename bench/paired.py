"""Times cnnlstm_fast.LSTM against plain nn.LSTM, backend by backend, taking turns within every round.

    python -m bench.paired --case crnn-b1 --mode inference --dtype bf16 --json FILE

A case is timed only after the gate has passed it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cnnlstm_fast.backends import BACKENDS
from cnnlstm_fast.timing import interleave

from . import environment
from .cases import CASES, DTYPES, MODES, Case
from .gate import check, why_not
from .jobs import Job, build, fast_job, pytorch_job, runs_in_pytorch

PYTORCH = "pytorch"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where the gate stopped a backend, else 0."""
    args = _arguments(argv)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"{environment.hardware()['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(_HEAD)
    rows: list[dict[str, Any]] = []
    for name in args.case:
        case = CASES[name]
        for mode in args.mode:
            for dtype in (d for d in args.dtype if d in case.dtypes):
                for row in measure(case, mode, dtype, args.backends, args.seconds):
                    print(_line(row), flush=True)
                    rows.append(row)
    hardware = environment.hardware()
    busy = sum((row.get("load") or 0.0) > 1.25 * hardware["cores"] for row in rows)
    if busy:
        print(f"{busy} rows came while others used the machine (load above its cores): measure them again.")
    if args.json is not None:
        report = {
            "started": started,
            "seconds": args.seconds,
            "hardware": hardware,
            "versions": environment.versions(),
            "commit": environment.commit(),
            "rows": rows,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row["status"] == "failed" for row in rows))


def measure(
    case: Case, mode: str, dtype: str, backends: Sequence[str] | None = None, seconds: float = 2.0
) -> Iterator[dict[str, Any]]:
    """Times one call on the named backends, or on all that are worth timing.

    Yields:
        A row a backend. ``status`` "measured" comes with ``median_ms``, ``rounds``, ``load`` (the machine's mean of
        runnable threads over the last minute), and, None where PyTorch cannot run the case: ``pytorch_ms``,
        ``ratio`` (median over the rounds of PyTorch's time / the backend's) and ``interval`` (of 95 % for it).
        "failed" (by the gate) and "skipped" come with a ``reason``.
    """
    inputs = build(case, DTYPES[dtype])
    head = {"case": asdict(case), "mode": mode, "dtype": dtype}
    jobs: dict[str, Job] = {}
    if backends is None:
        backends = [b for b in BACKENDS if b != "reference" or why_not(b, case, mode, dtype) is None]
    for backend in backends:
        reason = None if backend == "auto" else BACKENDS[backend].supports(case.spec(mode, dtype))
        if reason is not None:
            yield head | {"backend": backend, "status": "skipped", "reason": reason}
            continue
        try:
            check(case, mode, dtype, backend)
        except AssertionError as error:
            yield head | {"backend": backend, "status": "failed", "reason": str(error)}
            continue
        jobs[backend] = fast_job(case, inputs, mode, backend)
    if not jobs:
        return
    if runs_in_pytorch(case):
        jobs[PYTORCH] = pytorch_job(case, inputs, mode)
    times = interleave(jobs, seconds, max_rounds=10_000)
    pytorch = times.pop(PYTORCH, None)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for backend, own in times.items():
        row = head | {"backend": backend, "status": "measured", "median_ms": 1e3 * statistics.median(own)}
        row |= {"rounds": len(own), "load": load, "pytorch_ms": None, "ratio": None, "interval": None}
        if pytorch is not None:
            ratios = [a / b for a, b in zip(pytorch, own, strict=True)]
            row["pytorch_ms"] = 1e3 * statistics.median(pytorch)
            row["ratio"], row["interval"] = statistics.median(ratios), median_interval(ratios)
        yield row


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval for a median from order statistics: exact for any distribution, and the same at every call.

    A value lies below the true median with probability 1/2, so that the k-th smallest of n lies above it with
    that of fewer than k heads in n throws, and the k-th largest below it likewise. Where n is too small for the
    confidence (n < 6 at 95 %), the smallest and the largest value are returned.
    """
    ordered, n = sorted(values), len(values)
    k, ways = 1, 1
    fewer = 1  # of the 2**n outcomes, those with fewer than k heads
    while True:
        ways = ways * (n - k + 1) // k
        fewer += ways
        if 2 * fewer / 2**n > 1 - confidence:
            return ordered[k - 1], ordered[n - k]
        k += 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.paired", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--backends",
        type=_backends,
        help="comma-separated names of backends, auto included; all unless given",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case, mode and dtype")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def _backends(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name != "auto" and name not in BACKENDS:
            raise argparse.ArgumentTypeError(f"expected auto or one of {', '.join(BACKENDS)}, got {name!r}")
    return names


_HEAD = (
    f"{'case':<14} {'mode':<9} {'dtype':<5} {'backend':<9} {'median':>11} {'pytorch':>11} {'ratio':>7}"
    f"  {'95 % interval':<15} {'rounds':>6}"
)


def _line(row: dict[str, Any]) -> str:
    line = f"{row['case']['name']:<14} {row['mode']:<9} {row['dtype']:<5} {row['backend']:<9} "
    if row["status"] != "measured":
        return line + f"{row['status']}: {row['reason']}"
    if row["ratio"] is None:
        return line + f"{row['median_ms']:8.3f} ms  PyTorch cannot run it {row['rounds']:>24}"
    low, high = row["interval"]
    return line + (
        f"{row['median_ms']:8.3f} ms {row['pytorch_ms']:8.3f} ms {row['ratio']:6.2f}x"
        f"  {f'{low:.2f} to {high:.2f}':<15} {row['rounds']:>6}"
    )


if __name__ == "__main__":
    sys.exit(main())
