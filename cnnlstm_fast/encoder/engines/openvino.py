"""OpenVINO on the CPU, in float32 or with products of bfloat16."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..idle_team import use_idle_team
from ..region import Region
from .base import Engine, Options, Run, first_reason
from .onnx_model import onnx_model, other_float


def _supports(region: Region, options: Options) -> str | None:
    other = other_float(region)
    return first_reason(
        (options.precision not in (None, "bf16"), f"it does not compute in {options.precision}"),
        (other is not None, f"set up for float32, and the region has {other}"),
    )


@cache
def _core() -> Any:
    from openvino import Core

    return Core()


def _build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
    """One compilation, with open sizes. Compiled for the sizes of the call, two of 13 encoders were faster, by 10 and
    20 %, and none beyond noise else."""
    model = _core().read_model(onnx_model(region, example))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": options.threads,
        # without it, bfloat16 wherever the machine has instructions for it
        "INFERENCE_PRECISION_HINT": "bf16" if options.precision == "bf16" else "f32",
    }
    return _run(region, _core().compile_model(model, "CPU", settings), options.threads)


def _run(region: Region, compiled: Any, threads: int) -> Run:
    import openvino

    eager, requests, count = region.module.forward, threading.local(), len(region.outputs)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        if not all(t.numel() for t in tensors):
            return eager(*tensors)
        try:
            request = requests.own
        except AttributeError:  # the first call of this thread
            request = requests.own = compiled.create_infer_request()
        # a name keeps these alive until the end, which the request does not do
        given = [t.detach().contiguous().numpy() for t in tensors]
        for k, array in enumerate(given):
            request.set_input_tensor(k, openvino.Tensor(array, shared_memory=True))
        if threads > 1:
            use_idle_team()
        request.infer(share_outputs=True)
        # a copy, since the next call writes to the same memory
        return tuple(torch.from_numpy(request.get_output_tensor(k).data).clone() for k in range(count))

    return run


ENGINE = Engine(
    "openvino",
    "OpenVINO, CPU plugin",
    _build,
    _supports,
    modules=("openvino", "onnx"),
    pip="openvino onnx",
    own_threads=True,
    own_lstm=True,
)
