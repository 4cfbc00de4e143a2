"""torch.compile of nn.LSTM with static shapes and fullgraph=True, so that no part silently falls back to eager."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from ..cases import Case
from ..measure.jobs import Inputs, Job, pytorch_job
from .base import Peer, first_reason

SECONDS_PER_STEP = 1.3
"""Compile time: 66 s for 52 steps, PyTorch 2.13, two cores of a Xeon. Steps are counted per layer and direction."""
MOST_STEPS = 48
"""About a minute of compilation."""


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    steps = case.T * case.layers * case.directions
    seconds = steps * SECONDS_PER_STEP
    return first_reason(
        (bool(case.model), "set up for the layer alone"),
        (case.T == 0, "nn.LSTM rejects sequences without steps"),
        (case.resets > 0, "resets would need one graph for each distance between two of them"),
        (case.lengths is not None, "packed sequences break the graph and run eagerly"),
        (device == "cuda" and importlib.util.find_spec("triton") is None, "needs triton on CUDA"),
        (
            _unrolls(case, mode, device) and steps > MOST_STEPS,
            f"it unrolls {steps} steps: compiling takes {seconds:.0f} s at the measured {SECONDS_PER_STEP} s each",
        ),
    )


def _unrolls(case: Case, mode: str, device: str) -> bool:
    """On the CPU without gradients it calls oneDNN's LSTM; otherwise it unrolls all steps."""
    return mode == "training" or device != "cpu" or case.proj_size > 0


def _prepare(case: Case, inputs: Inputs, mode: str, dtype: str) -> Job:
    torch._dynamo.reset()  # graphs of earlier cases would count towards the recompilation limit
    torch._dynamo.config.allow_rnn = True
    lstm: Any = pytorch_job(case, inputs, mode).module
    compiled: Any = torch.compile(lstm, fullgraph=True, dynamic=False)
    job = Job(lstm, compiled, inputs, mode, case.states, dtype == "amp")
    job()
    return job


PEER = Peer(
    "torch-compile",
    "torch.compile of nn.LSTM",
    modules=("torch",),
    pip="torch",
    supports=_supports,
    prepare=_prepare,
    slow_setup=True,
)
