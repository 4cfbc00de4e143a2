"""The fused C++ kernel for CPUs (csrc/cpu), compiled into the operator."""

from __future__ import annotations

import torch

from .. import _native
from ..canonical import LSTMSpec
from . import aten, measured
from .base import Backend, Pace


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


def _pace(spec: LSTMSpec) -> Pace | None:
    """By the tables of measurements. They are of whole sequences without a projection: for the others PyTorch has no
    such kernel. In a traced graph the sizes are unknown. The threads are those of the first call with these facts."""
    if spec.T is None or spec.B is None or spec.packed or spec.proj_size:
        return None
    if aten.BACKEND.supports(spec) is not None:
        return None
    machine = measured.running()
    table = measured.nearest(machine)
    kind = None if table is None else table.kinds.get(measured.kind(spec))
    if table is None or kind is None:
        return None
    sizes = (spec.T, spec.B, spec.input_size, spec.hidden_size)
    estimate, near = kind.estimate(*sizes), kind.closest(*sizes)
    ratio, slow = estimate.ratio, estimate.slow
    faster = f"aten is {1 / ratio:.2f} times as fast" if slow else f"{ratio:.2f} times as fast as aten"
    where = str(table.machine)
    if table.machine != machine:
        where += f", the nearest to this machine's {machine}"
    place = f"T={near.T} B={near.B} I={near.I} H={near.H}"
    return Pace(slow, f"{faster} near {place} by {kind.made['source']} ({where})")


BACKEND = Backend("cpu", "fused C++ kernel for CPUs", _supports, _pace, native=True)
