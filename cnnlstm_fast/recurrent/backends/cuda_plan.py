"""How the kernels of the backend ``cuda`` split a call into blocks and warps, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ... import _native
from ..canonical import LSTMSpec
from ..precision import allows_tf32

ALGORITHMS = {
    "persistent_block": "one block for 8 sequences",
    "persistent_cluster": "clusters of {blocks} blocks for 8 sequences",
    "persistent_grid": "{blocks} blocks of one grid for 8 sequences",
    "streaming": "{blocks} blocks of one grid for {sequences} sequences, which read the weights in every step",
    "per_step": "a matrix product of a library and a kernel for the cells in every step",
}


def compute_type(dtype: torch.dtype) -> str:
    """The type that the products of the recurrence are computed in."""
    if dtype == torch.float32 and allows_tf32():
        return "tf32"
    return str(dtype).removeprefix("torch.")


def describe(spec: LSTMSpec, gpu: dict[str, Any], registers: Callable[..., int] | None = None) -> str:
    """The plan of a layer of the call, in one line; of one sequence where the batch size is not known.

    Args:
        gpu: the facts of the GPU, as ``_C.cuda_gpu`` gives them.
        registers: ``_C.cuda_registers`` where that GPU is the current one.
    """
    passes = ["forward", *(["backward"] if spec.grad else [])]
    parts = [f"{name}: {_describe(spec, gpu, name == 'backward', registers)}" for name in passes]
    source = "costs measured on such a GPU" if gpu["measured"] else "guessed costs, since none were measured"
    return "; ".join(parts) + f" (by {source})"


def _describe(
    spec: LSTMSpec, gpu: dict[str, Any], backward: bool, registers: Callable[..., int] | None
) -> str:
    assert _native._C is not None
    B = 1 if spec.B is None else max(spec.B, 1)
    what = (gpu, backward, compute_type(spec.dtype), spec.hidden_size, B, spec.directions)
    plan = _native._C.plan(*what)
    expected = (
        f"{1e6 * plan['step_seconds']:.2f} us a step expected, {1e6 * plan['floor_seconds']:.2f} at the least"
    )
    algorithm = plan["algorithm"]
    split = f"{algorithm}, {ALGORITHMS[algorithm].format(sequences=8 * plan['batch'], **plan)}"
    if algorithm == "per_step":
        return f"{split}, {expected}"
    of_thread = "" if registers is None else f"{registers(*what)} registers, among them "
    launches = -(-plan["batch_tiles"] // plan["tiles_at_once"])
    return ", ".join(
        [
            split + (f", {launches} launches one after the other" if launches > 1 else ""),
            f"{plan['threads']} threads a block with {of_thread}{8 * plan['tiles']} registers of weights each",
            f"{plan['shared_bytes'] / 1024:.0f} KB of shared memory",
            expected,
        ]
    )
