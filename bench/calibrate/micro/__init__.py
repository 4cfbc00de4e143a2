"""The costs of the parts of a step on a GPU, by which the CUDA kernels' work is split."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cnnlstm_fast import _native

from ...roofline.peaks import Roofline

CLUSTERS = (2, 4, 8, 16)
COMPUTE_TYPES = {"piece_float32": 0, "piece_tf32": 1, "piece_16": 2}  # values of CnnlstmComputeType
# Groups of 8 units of a block: a tile whose bytes cost little, and one eight times as large.
SMALL, LARGE = 1, 8


def costs(native: Any, gpu: dict[str, Any], roofline: Roofline, issue: float) -> dict[str, float]:
    """All of CnnlstmCosts (defined in csrc/cuda/plan.h) of the current GPU.

    Args:
        native: the module ``_C``.
        gpu: the facts of the GPU, as ``_C.cuda_gpu`` gives them.
        roofline: measured on it, for the rates of a library's products.
        issue: see :func:`issue_time`.
    """
    barrier = native.cuda_block_barrier(threads=512)
    multiprocessors, largest = gpu["multiprocessors"], gpu["largest_cluster"]
    found = {name: native.micro_piece(compute_type) for name, compute_type in COMPUTE_TYPES.items()}
    found |= {
        "piece_latency": native.micro_piece_latency(),
        "special": native.micro_special(),
        "cell_latency": native.micro_cell(),
        "shared": native.micro_shared(),
        "block_barrier": barrier,
        **dict.fromkeys((*(f"send_{blocks}" for blocks in CLUSTERS), "cluster"), 0.0),
    }
    exchange = partial(_latency_and_bandwidth, native.micro_exchange, barrier)
    for blocks in CLUSTERS:
        if blocks <= largest:
            found[f"send_{blocks}"], bandwidth = exchange(True, blocks)
            # of the cluster size that most calls use
            if blocks <= 8:
                found["cluster"] = bandwidth
    # A grid's exchange includes a barrier, which plans count separately. With two blocks each thread loads all its
    # words at once.
    found["word"] = max(native.micro_exchange(False, False, SMALL, 2) - barrier, 0.0)
    # Of 16 small blocks' words a thread has two turns of four, of 32 blocks' four.
    two, four = (native.micro_exchange(False, False, SMALL, min(n, multiprocessors)) for n in (16, 32))
    found["word_turn"] = max(four - two, 0.0) / 2
    return found | {
        "l2_sm": native.micro_l2(1),
        "l2": native.micro_l2(multiprocessors),
        "memory": native.cuda_copy_bandwidth(),
        "gemm_16": 1e-9 * roofline.gemm_bf16,
        "gemm_float32": 1e-9 * roofline.gemm_f32,
        "launch": native.micro_launch(),
        "issue": issue,
    }


def issue_time() -> float:
    """Nanoseconds that the CPU takes to launch a PyTorch product that is so small that the GPU keeps up: the best mean
    of a few hundred in a row, fewer than the launch queue holds."""
    products, found = 300, float("inf")
    a, out = (torch.zeros(16, 16, device="cuda") for _ in range(2))
    for _ in range(8):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(products):
            torch.mm(a, a, out=out)
        found = min(found, (time.perf_counter_ns() - start) / products)
    return found


def sweeps(native: Any, gpu: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Nanoseconds of an exchange by the number of blocks, for small and large tiles of a forward pass: more
    detail than the fitted costs."""
    multiprocessors = gpu["multiprocessors"]
    grids = sorted({n for n in (2, 4, 8, 16, 32, 64, 96, multiprocessors) if n <= multiprocessors})
    places = {"cluster": [n for n in CLUSTERS if n <= gpu["largest_cluster"]], "grid": grids}
    return {
        f"{place}, {groups} groups a block": {
            str(blocks): native.micro_exchange(place == "cluster", False, groups, blocks) for blocks in counts
        }
        for place, counts in places.items()
        for groups in (SMALL, 4)
    }


def _latency_and_bandwidth(
    exchange: Callable[[bool, bool, int, int], float], barrier: float, cluster: bool, blocks: int
) -> tuple[float, float]:
    """Nanoseconds of an exchange of no bytes, and bytes per nanosecond that arrive at a block, fitted to two tiles."""
    small, large = (exchange(cluster, True, groups, blocks) for groups in (SMALL, LARGE))
    tile = 8 * 8 * 8 * blocks  # bytes of a group in all blocks: units, sequences, four gates of two bytes
    more = (LARGE - SMALL) * tile
    slope = max(large - small, 1e-3) / more  # nanoseconds a byte
    return max(small - SMALL * tile * slope - barrier, 0.0), 1 / slope


def missing() -> str | None:
    """Why nothing can be measured here."""
    if _native._C is None:
        return _native.reason
    if not hasattr(_native._C, "cuda_devices"):
        return f"the CUDA part was not built: {_native.notes.get('cuda_reason')}"
    return None if _native._C.cuda_devices() else "there is no NVIDIA GPU"


def row(name: str, found: dict[str, float]) -> str:
    """The row of ``csrc/cuda/costs.cpp`` for this GPU."""
    numbers = ", ".join(f"{cost:.4g}" for cost in found.values())
    return f'    {{"{name}", {{{numbers}}}}},'
