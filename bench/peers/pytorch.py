"""Plain nn.LSTM in eager mode: oneDNN on Intel's and AMD's CPUs, cuDNN on NVIDIA's GPUs."""

from __future__ import annotations

from functools import partial

import torch

from ..cases import Case
from ..measure.jobs import Inputs, Job, ModelInputs, ModelJob, pytorch_job, runs_in_pytorch
from .base import Peer, first_reason


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return first_reason((not runs_in_pytorch(case), "nn.LSTM rejects sequences without steps"))


def _supports_tf32(case: Case, mode: str, dtype: str, device: str) -> str | None:
    tf32 = device == "cuda" and dtype == "f32"
    return first_reason((not tf32, "TF32 is for float32 on CUDA")) or _supports(case, mode, dtype, device)


def _prepare(tf32: bool, case: Case, inputs: Inputs | ModelInputs, mode: str, dtype: str) -> Job | ModelJob:
    # PyTorch allows cuDNN TF32 by default, but rows in f32 compare float32 products
    torch.backends.cudnn.allow_tf32 = tf32
    return pytorch_job(case, inputs, mode, amp=dtype == "amp")


EAGER = Peer(
    "pytorch",
    "nn.LSTM, eager",
    modules=("torch",),
    pip="torch",
    supports=_supports,
    prepare=partial(_prepare, False),
)
TF32 = Peer(
    "pytorch-tf32",
    "nn.LSTM, eager, cuDNN with TF32 products, PyTorch's default",
    modules=("torch",),
    pip="torch",
    supports=_supports_tf32,
    prepare=partial(_prepare, True),
    precision="tf32",
)
