"""The error contract: what "the same numbers" means. Stated once, for verify, the tests and the benchmarks.

Error is ||out - ref|| / ||ref|| against the float64 reference. A result passes when its error is at most twice
that of PyTorch's own kernel in the same dtype, plus a small floor for the cases where PyTorch is exact by luck.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 1e-3}


def relative_error(out: Tensor, ref: Tensor) -> float:
    """||out - ref|| / ||ref|| in float64; infinite where ``out`` is not finite but ``ref`` is."""
    out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
    if out.shape != ref.shape:
        raise ValueError(f"out: expected the reference's shape {tuple(ref.shape)}, got {tuple(out.shape)}.")
    if not ref.numel():
        return 0.0
    difference = torch.linalg.vector_norm(out - ref).item()
    if difference != difference:
        return float("inf")
    norm = torch.linalg.vector_norm(ref).item()
    return difference / norm if norm > 0.0 else difference


def bound(eager_error: float, dtype: torch.dtype) -> float:
    """The largest error that passes beside PyTorch's own."""
    return 2.0 * eager_error + FLOOR[dtype]
