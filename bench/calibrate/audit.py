"""``python -m bench.calibrate.audit``: times random calls with ``auto`` against nn.LSTM, and lists where it is slower.

The shapes are not those of any table. Each call stands for a program of its own, which may measure it at first use.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cnnlstm_fast.recurrent.backends.measured import Estimate
from cnnlstm_fast.recurrent.dispatch import cached_plan
from cnnlstm_fast.timing import interleave, paired_ratio, timed

from ..cases import DTYPES, MODES, Call, Case
from ..measure import environment
from ..measure.jobs import build, fast_job, pytorch_job
from ..report.progress import progress_bar
from ..report.record import geometric_mean, write_whole
from .choose import flop

MOST_T, MOST_B, LEAST_WIDTH, MOST_WIDTH = 300, 128, 8, 768
MOST_FLOP = 5e9
"""Of a call, which then takes less than a tenth of a second on a core with vectors of 256 bits."""
SHORT = 1e-3
"""Seconds up to which calls are timed in a block, as the clock and the change between the two take microseconds."""
ROUNDS = 9, 60


@dataclass(frozen=True)
class Finding:
    """A call, what ``auto`` chose for it, and the time of nn.LSTM / that of auto with its 95 % interval."""

    T: int
    B: int
    I: int
    H: int
    D: int
    mode: str
    dtype: str
    backend: str
    reason: str
    ratio: float
    low: float
    high: float

    @property
    def slow(self) -> bool:
        """Whether auto is slower than PyTorch beyond noise, by the rule of ``auto`` itself."""
        return Estimate(self.ratio, self.high).slow

    def __str__(self) -> str:
        shape = f"T={self.T} B={self.B} I={self.I} H={self.H} D={self.D} {self.mode} {self.dtype}"
        return (
            f"{shape}: {self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}) by {self.backend}: {self.reason}"
        )


def draw(count: int, seed: int) -> list[Call]:
    """Random calls of single layers: the logarithms of the sizes are uniform."""
    rng = random.Random(seed)

    def size(least: int, most: int) -> int:
        return round(math.exp(rng.uniform(math.log(least), math.log(most))))

    calls: list[Call] = []
    while len(calls) < count:
        T, B = size(1, MOST_T), size(1, MOST_B)
        I, H = size(LEAST_WIDTH, MOST_WIDTH), size(LEAST_WIDTH, MOST_WIDTH)
        case = Case(f"random-{len(calls)}", T, B, I, H, 1, rng.random() < 0.5, "a random call")
        call = Call(case, rng.choice(MODES), rng.choice(("f32", "bf16")))
        if flop(call) <= MOST_FLOP:
            calls.append(call)
    return calls


def examine(call: Call, seconds: float) -> Finding:
    """Times the call; a loss counts only if a second measurement finds it again."""
    case, mode, dtype = call
    inputs = build(case, DTYPES[dtype])
    ours, theirs = fast_job(case, inputs, mode, "auto"), pytorch_job(case, inputs, mode)
    ours()  # may measure
    with torch.set_grad_enabled(mode == "training"):
        choice = cached_plan(ours.module.key(inputs.x.requires_grad_(mode == "training"))).choice
    jobs = {"ours": ours, "theirs": theirs}
    for job in jobs.values():
        job()
    once = max(timed(job) for job in jobs.values())
    calls = {name: _repeated(job, math.ceil(SHORT / once)) for name, job in jobs.items()}
    for _ in range(2):
        times = interleave(calls, seconds, *ROUNDS)
        ratio = paired_ratio(times["theirs"], times["ours"])
        found = Finding(
            *(case.T, case.B, case.I, case.H, case.directions, mode, dtype),
            *(choice.backend.name, choice.reason, ratio.value, ratio.low, ratio.high),
        )
        if not found.slow:
            break
    return found


def _repeated(job: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            job()

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where auto is slower; 2 for misuse."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate.audit", description=__doc__)
    parser.add_argument("--shapes", type=int, default=200, help="how many calls (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each call (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    args = parser.parse_args(argv)
    for name, least in (("shapes", 1), ("threads", 1), ("seconds", 0.0)):
        if getattr(args, name) < least:
            print(f"--{name}: expected {least:g} or more, got {getattr(args, name):g}.", file=sys.stderr)
            return 2
    torch.set_num_threads(args.threads)
    findings: list[Finding] = []
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("", total=args.shapes)
        for call in draw(args.shapes, args.seed):
            progress.update(task, description=" ".join((call.case.name, call.mode, call.dtype)))
            findings.append(examine(call, args.seconds))
            progress.advance(task)
    slow = [found for found in findings if found.slow]
    for found in slow:
        print(found)
    by_aten = sum(found.backend == "aten" for found in findings)
    print(
        f"auto is slower than PyTorch beyond noise at {len(slow)} of {len(findings)} calls, and "
        f"{geometric_mean([found.ratio for found in findings]):.2f} times as fast in the geometric mean; "
        f"it took aten for {by_aten}"
    )
    if args.json is not None:
        document = {
            "hardware": environment.hardware(),
            "versions": environment.versions(),
            "commit": environment.commit(),
            "arguments": vars(args) | {"json": str(args.json)},
            "calls": [asdict(found) for found in findings],
        }
        write_whole(args.json, json.dumps(document, indent=1) + "\n")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
