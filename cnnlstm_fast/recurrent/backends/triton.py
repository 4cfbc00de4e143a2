"""Triton kernels for NVIDIA GPUs (the folder kernels); on a CPU in Triton's interpreter, for tests."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..canonical import LSTMSpec
from . import measured
from .base import Backend, MeasuredSpeed, Outputs, constant

OLDEST = 8
"""Major compute capability: earlier GPUs have no bfloat16 and are not supported."""


def _supports(spec: LSTMSpec) -> str | None:
    interpreted = spec.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (spec.device != "cuda" or torch.version.cuda is None):
        return f"it runs on NVIDIA GPUs, the tensors are on {spec.device}"
    if not _installed():
        return "Triton is not installed; pip install triton"
    if not interpreted and torch.cuda.get_device_capability()[0] < OLDEST:
        return f"it needs an NVIDIA GPU of compute capability {OLDEST}.0 or later"
    if spec.dtype == torch.float64:
        return "it computes in float32, bfloat16 and float16, the tensors are float64"
    return None


@constant
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _pace(spec: LSTMSpec) -> MeasuredSpeed | None:
    if spec.device == "cpu":
        return MeasuredSpeed(True, "it is interpreted here")
    return measured.measured_speed_on_gpu(spec, "triton")


@cache
def kernels() -> ModuleType:
    """The module that holds the operator's two passes. In a checkout that is not installed, the folder kernels lies
    beside the package, not in it."""
    name = "cnnlstm_fast.kernels"
    if importlib.util.find_spec(name) is None:
        folder = Path(__file__).parents[3] / "kernels"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.stack")


def _forward(*args: Any) -> Outputs:
    return kernels().forward(*args)


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return kernels().backward(*args)


BACKEND = Backend(
    "triton", "Triton kernels for NVIDIA GPUs", _supports, _pace, forward=_forward, backward=_backward
)
