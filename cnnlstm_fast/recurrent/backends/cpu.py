"""The fused C++ kernel for CPUs (csrc/cpu), compiled into the operator."""

from __future__ import annotations

import torch

from ... import _native
from ..canonical import LSTMSpec
from . import first_use, measured, this_machine
from .base import Backend, MeasuredSpeed


def _supports(spec: LSTMSpec) -> str | None:
    if spec.device != "cpu":
        return f"it runs on the CPU, the tensors are on {spec.device}"
    if not _native.available:
        return f"the compiled extension is not available: {_native.reason}"
    if spec.dtype not in (torch.float32, torch.bfloat16):
        return (
            f"it computes in float32 and bfloat16, the tensors are {str(spec.dtype).removeprefix('torch.')}"
        )
    return None


def _measured_speed(spec: LSTMSpec) -> MeasuredSpeed | None:
    """Cached with the call's plan: it depends on the number of threads at the first call with the same key."""
    here = first_use.measured_here(spec)
    return measured.measured_speed(spec, "cpu", this_machine.running) if here is None else here


def plan(spec: LSTMSpec) -> str | None:
    """Also of the kernel with int8 products."""
    if not _native.is_forked_child():
        return None
    return "on one thread, since this process was forked from one that had loaded the package"


BACKEND = Backend("cpu", "fused C++ kernel for CPUs", _supports, _measured_speed, plan, native=True)
