"""Fused CUDA kernels for NVIDIA GPUs (csrc/cuda), compiled into the operator.

Tests run the same kernels on CPU tensors: a library of their own holds them compiled for the CPU. That is the only use
of ``forward`` and ``backward`` here, since the compiled operator handles CUDA tensors itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..canonical import LSTMSpec
from . import measured
from .base import Backend, MeasuredSpeed, Outputs, constant
from .cuda_plan import describe

OLDEST = 80
"""Compute capability times ten: earlier GPUs have neither bfloat16 nor asynchronous copies."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_host: Any = None


def load_host_library(path: Path) -> None:
    """From now on the backend also takes CPU tensors."""
    global _host
    torch.ops.load_library(str(path))
    _host = torch.ops.cnnlstm_emulator


def _supports(spec: LSTMSpec) -> str | None:
    if spec.device == "cpu" and _host is not None:
        reason = None
    elif spec.device != "cuda" or torch.version.cuda is None:
        reason = f"it runs on NVIDIA GPUs, the tensors are on {spec.device}"
    else:
        major, minor = torch.cuda.get_device_capability()
        reason = _missing(10 * major + minor)
    if reason is None and spec.dtype not in DTYPES:
        name = str(spec.dtype).removeprefix("torch.")
        reason = f"it computes in float32, bfloat16 and float16, the tensors are {name}"
    return reason


@constant
def _missing(sm: int) -> str | None:
    """Why what was built does not run on a GPU of compute capability sm / 10."""
    if not _native.available:
        return f"the compiled extension is not here: {_native.reason}"
    if not _native.notes["cuda"]:
        return f"the extension was built without its CUDA part: {_native.notes['cuda_reason']}"
    if sm < OLDEST:
        return f"it needs an NVIDIA GPU of compute capability {OLDEST / 10} or later"
    archs = _native.notes["cuda_archs"]
    if not has_code(archs, sm):
        return f"it was built for the architectures {', '.join(archs)}, this GPU has {sm}: build it again"
    return None


def has_code(archs: Sequence[str], sm: int) -> bool:
    """Whether a build for these architectures runs there: code runs within its major version, with the suffix a only on
    the same architecture; the newest one without a suffix is also kept as PTX, which runs on all later ones."""
    newest = max((int(arch) for arch in archs if arch.isdigit()), default=None)

    def runs(arch: str) -> bool:
        built = int(arch.rstrip("af"))
        return built == sm if arch.endswith("a") else built // 10 == sm // 10 and built <= sm

    return any(map(runs, archs)) or (newest is not None and newest <= sm)


def _pace(spec: LSTMSpec) -> MeasuredSpeed | None:
    if spec.device == "cpu":
        return MeasuredSpeed(True, "its kernels are compiled for the CPU, for tests only")
    return measured.measured_speed_on_gpu(spec, "cuda")


def _plan(spec: LSTMSpec) -> str | None:
    if spec.device == "cpu":
        return None
    assert _native._C is not None
    return describe(spec, _gpu(torch.cuda.current_device()), _native._C.cuda_registers)


@cache
def _gpu(index: int) -> dict[str, Any]:
    assert _native._C is not None
    facts: dict[str, Any] = _native._C.cuda_gpu(index)
    return facts


def _forward(*args: Any) -> Outputs:
    outputs: Outputs = _host_library().lstm(*args, BACKEND.name)
    return outputs


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    gradients: tuple[Tensor, Tensor, Tensor, list[Tensor]] = _host_library().lstm_backward(
        *args, BACKEND.name
    )
    return gradients


def _host_library() -> Any:
    if _host is None:
        raise RuntimeError("backend 'cuda' runs on NVIDIA GPUs, with the extension compiled for CUDA")
    return _host


BACKEND = Backend("cuda", "fused CUDA kernels for NVIDIA GPUs", _supports, _pace, _plan, _forward, _backward)
