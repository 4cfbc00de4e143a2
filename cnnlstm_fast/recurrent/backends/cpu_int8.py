"""The C++ kernel for CPUs with int8 products (csrc/cpu/quantize.h), compiled into the operator."""

from __future__ import annotations

import torch

from ..canonical import LSTMSpec
from . import cpu
from .base import Backend

MAX_FEATURES = 1 << 17
"""The largest number of int8 products whose sum fits 32 bits."""


def _supports(spec: LSTMSpec) -> str | None:
    reason = cpu.BACKEND.supports(spec)
    if reason is not None:
        return reason
    if spec.dtype != torch.float32:
        return f"it takes float32 tensors, the tensors are {str(spec.dtype).removeprefix('torch.')}"
    if spec.grad:
        return "it has no gradients, and one is wanted; call it under torch.no_grad()"
    inner = spec.directions * (spec.proj_size or spec.hidden_size)
    if max(spec.input_size, inner) > MAX_FEATURES:
        return f"its sums of products hold {MAX_FEATURES} features at most"
    return None


BACKEND = Backend(
    "cpu-int8",
    "fused C++ kernel for CPUs with weights and activations quantized to int8",
    _supports,
    plan=cpu.plan,
    native=True,
    approximate=True,
)
