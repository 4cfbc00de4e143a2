"""``python -m bench.calibrate.micro``: measures the costs of the parts of a step on this GPU.

Prints every cost and the row for ``csrc/cuda/costs.cpp``, by which the CUDA kernels' work is split on such a GPU from
the next build on. Exit status: 3 without a GPU or without the CUDA part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnlstm_fast import _native

from ...measure import environment
from ...report.record import write_whole
from ...roofline import peaks
from . import costs, issue_time, missing, row, sweeps


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate.micro", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args(argv)
    reason = missing()
    if reason is not None:
        print(f"micro: {reason}", file=sys.stderr)
        return 3
    native = _native._C
    assert native is not None
    name, gpu = native.cuda_devices()[0]["name"], native.cuda_gpu(0)
    found = costs(native, gpu, peaks.measure("cuda:0"), issue_time())
    # in the order of the table
    found = {cost: found[cost] for cost in gpu["costs"]}
    document = {
        "gpu": name,
        "commit": environment.commit(),
        "hardware": environment.hardware(),
        "facts": gpu | {"costs": found, "measured": True},
        "guessed": None if gpu["measured"] else gpu["costs"],
        "exchanges": sweeps(native, gpu),
    }
    for cost, value in found.items():
        print(f"{cost:14} {value:10.4g}   (used so far: {gpu['costs'][cost]:.4g})")
    for title, times in document["exchanges"].items():
        print(f"{title}: " + ", ".join(f"{blocks}: {ns:.0f} ns" for blocks, ns in times.items()))
    print(row(name, found))
    if args.json is not None:
        write_whole(args.json, json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
