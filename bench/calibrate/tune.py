"""``python -m bench.calibrate.tune``: measures every Triton plan that fits this GPU and keeps the fastest.

The result is written to the user's cache and used from the next process on; a file to be shipped belongs in
``kernels/tables/``. Calls never measure: a size that is in no table uses the first plan that fits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from cnnlstm_fast.recurrent.backends.triton import kernels

from ..report.record import write_whole

# A checkout that was not installed (as bench/gpu_check.sh uses it) finds the folder kernels only by this call.
kernels()
from cnnlstm_fast.kernels import recurrence, stack  # noqa: E402
from cnnlstm_fast.kernels.plan import Device, Plan, cached, candidates, device_of, key  # noqa: E402
from cnnlstm_fast.kernels.precision import size as bytes_of  # noqa: E402

Size = tuple[int, int, int, torch.dtype]
"""H, B, D and dtype."""

STEPS = 64
SIZES = tuple(
    itertools.product(
        (16, 32, 64, 128, 256, 512, 1024, 2048),
        (1, 8, 16, 32, 64, 128, 256),
        (1, 2),
        (torch.bfloat16, torch.float32),
    )
)


def tune(
    device: Device, sizes: Iterable[Size], measure: Callable[[Size, Plan], float], path: Path
) -> dict[str, Plan]:
    """Measures size by size and writes the file after each one, so that an interruption loses nothing.

    Args:
        measure: the time of a forward and a backward pass of one layer in ms.
    """
    found: dict[str, Plan] = {}
    times: dict[str, dict[str, float]] = {}
    for H, B, D, dtype in sizes:
        factor_bytes = bytes_of(dtype)
        possible = candidates(device, H, B, D, factor_bytes)
        if len(possible) == 1:
            continue
        taken = {plan: measure((H, B, D, dtype), plan) for plan in possible}
        name = key(H, B, D, factor_bytes)
        found[name] = min(taken, key=taken.__getitem__)
        times[name] = {" ".join(map(str, plan)): round(ms, 4) for plan, ms in taken.items()}
        print(f"{name}: {found[name].algorithm}, {times[name]}", flush=True)
        _write(path, device, found, times)
    return found


def measure_on_gpu(size: Size, plan: Plan) -> float:
    """Median time of a forward and a backward pass over ``STEPS`` steps in ms."""
    H, B, D, dtype = size
    # calls take no plan as an argument: replacing the function that chooses it leaves the measured code unchanged
    chosen = recurrence.plan
    recurrence.plan = lambda *_: plan  # type: ignore[assignment]
    try:
        run = call(STEPS, H, B, D, dtype, "cuda")
        return triton.testing.do_bench(run, warmup=20, rep=60, return_mode="median")
    finally:
        recurrence.plan = chosen


def call(T: int, H: int, B: int, D: int, dtype: torch.dtype, device: str) -> Callable[[], tuple[Any, ...]]:
    """A forward and a backward pass of one layer, all gradients included; input_size is H."""
    new: dict[str, Any] = dict(device=device, dtype=dtype)
    x, h, c = torch.randn(T, B, H, **new), torch.zeros(D, B, H, **new), torch.zeros(D, B, H, **new)
    weights = [torch.randn(4 * H, H, **new) * H**-0.5 for _ in range(2 * D)]
    rest = (None, None, None, None, D == 2)

    def run() -> tuple[Any, ...]:
        output, _, _, *saved = stack.forward(x, h, c, weights, *rest, True, False)
        return stack.backward(
            output, None, None, None, x, h, c, weights, *rest[:4], output, *saved, D == 2, True, True
        )

    return run


def _write(path: Path, device: Device, plans: dict[str, Plan], times: dict[str, dict[str, float]]) -> None:
    document = {
        "gpu": device.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "plans": plans,
        "ms": times,
    }
    write_whole(path, json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate.tune", description=__doc__)
    parser.add_argument("--out", type=Path, help="instead of the user's cache")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            f"tune: PyTorch {torch.__version__} sees no NVIDIA GPU; there is nothing to measure.",
            file=sys.stderr,
        )
        return 3
    device = device_of(torch.cuda.current_device())
    path = args.out or cached(device.name)
    tune(device, SIZES, measure_on_gpu, path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
