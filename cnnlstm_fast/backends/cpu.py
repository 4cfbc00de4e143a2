"""The fused C++ kernel for CPUs (csrc/cpu), compiled into the operator."""

from __future__ import annotations

import torch

from .. import _native
from ..canonical import LSTMSpec
from . import aten
from .base import Backend


def _supports(spec: LSTMSpec) -> str | None:
    if spec.device != "cpu":
        return f"it runs on the CPU, the tensors are on {spec.device}"
    if not _native.available:
        return f"the compiled extension is not here: {_native.reason}"
    if spec.dtype not in (torch.float32, torch.bfloat16):
        return (
            f"it computes in float32 and bfloat16, the tensors are {str(spec.dtype).removeprefix('torch.')}"
        )
    return None


def _slower(spec: LSTMSpec) -> str | None:
    """Where PyTorch's own kernel was faster: mostly large products, in which a GEMM library beats the panels.

    The bounds come from paired measurements of single layers over T 1-300, B 1-256, H 16-1024, one and two
    directions, on two cores with AVX-512 and AMX (docs/notes/cpu.md). PyTorch has no such kernel for packed input.
    """
    if spec.B is None or spec.packed or aten.BACKEND.supports(spec) is not None:
        return None
    B, H = spec.B, spec.hidden_size
    if spec.dtype == torch.float32:
        one_long = spec.bidirectional and H >= 1024 and B == 1 and (spec.T or 0) >= 32
        slow = not spec.grad and (one_long or (H >= 256 and B * H >= 16384) or (H >= 1024 and B >= 8))
    elif spec.grad:
        slow = H >= 128 and (B * H >= 16384 or (B >= 32 and H >= 256))
    else:
        slow = B * H >= 32768
    kind = "training" if spec.grad else "inference"
    return f"aten measured faster for {kind} at B={B}, H={H}" if slow else None


BACKEND = Backend("cpu", "fused C++ kernel for CPUs", _supports, _slower, native=True)
