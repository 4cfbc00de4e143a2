"""PyTorch's dynamic quantization: int8 weights, activations quantized in every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..cases import Case
from ..measure.jobs import Inputs, Job, pytorch_job
from .base import Peer, first_reason


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return first_reason(
        (mode != "inference", "inference only"),
        (device != "cpu", "its kernels run on the CPU only"),
        (dtype != "f32", "it takes float32 tensors only"),
        (bool(case.model), "set up for the layer alone"),
        (case.T == 0, "it rejects sequences without steps"),
        (case.proj_size > 0, "it has no projections"),
        (case.resets > 0, "it has no resets"),
        (case.lengths is not None and not case.packed, "it takes lengths as a PackedSequence only"),
    )


def _prepare(case: Case, inputs: Inputs, mode: str, dtype: str) -> Job:
    from torch.ao.quantization import quantize_dynamic

    lstm = pytorch_job(case, inputs, mode).module.eval()
    quantized: Any = quantize_dynamic(nn.Sequential(lstm), {nn.LSTM}, dtype=torch.qint8)[0]
    return Job(quantized, quantized, inputs, mode, case.states)


PEER = Peer(
    "torch-ao-int8",
    "torch.ao.quantization.quantize_dynamic",
    modules=("torch",),
    pip="torch",
    supports=_supports,
    prepare=_prepare,
    precision="int8",
)
