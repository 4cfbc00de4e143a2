"""torch.compile: of nn.LSTM with static shapes and fullgraph=True, so that no part silently falls back to eager; of
whole models as its documentation shows it, and with frozen weights."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import torch

from ..cases import Case
from ..measure.jobs import Inputs, Job, ModelInputs, ModelJob, model, pytorch_job
from .base import Peer, first_reason

SECONDS_PER_STEP = 1.3
"""Compile time: 66 s for 52 steps, PyTorch 2.13, two cores of a Xeon. Steps are counted per layer and direction."""
MOST_STEPS = 48
"""About a minute of compilation."""


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    steps = case.T * case.layers * case.directions
    seconds = steps * SECONDS_PER_STEP
    return first_reason(
        (case.T == 0, "nn.LSTM rejects sequences without steps"),
        (case.resets > 0, "resets would need one graph for each distance between two of them"),
        (case.lengths is not None, "packed sequences break the graph and run eagerly"),
        (device == "cuda" and importlib.util.find_spec("triton") is None, "needs triton on CUDA"),
        (
            not case.model and _unrolls(case, mode, device) and steps > MOST_STEPS,
            f"it unrolls {steps} steps: compiling takes {seconds:.0f} s at the measured {SECONDS_PER_STEP} s each",
        ),
    )


def _supports_frozen(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return first_reason(
        (not case.model, "set up for whole models"),
        (mode != "inference", "frozen weights cannot be trained"),
    ) or _supports(case, mode, dtype, device)


def _unrolls(case: Case, mode: str, device: str) -> bool:
    """On the CPU without gradients it calls oneDNN's LSTM; otherwise it unrolls all steps."""
    return mode == "training" or device != "cpu" or case.proj_size > 0


def _prepare(frozen: bool, case: Case, inputs: Inputs | ModelInputs, mode: str, dtype: str) -> Job | ModelJob:
    from torch._inductor import config

    torch._dynamo.reset()  # graphs of earlier cases would count towards the recompilation limit
    config.force_disable_caches = True  # the set-up time is that of the first time
    config.freezing = frozen
    if isinstance(inputs, ModelInputs):
        # without it, an nn.LSTM breaks the graph and runs eagerly; with it, one that would be unrolled takes minutes
        torch._dynamo.config.allow_rnn = not _unrolls(case, mode, inputs.x[0].device.type)
        module = model(case, inputs, mode)
        of_model = ModelJob(module, torch.compile(module), inputs, mode, dtype == "amp")
        of_model()
        return of_model
    torch._dynamo.config.allow_rnn = True
    lstm: Any = pytorch_job(case, inputs, mode).module
    compiled: Any = torch.compile(lstm, fullgraph=True, dynamic=False)
    job = Job(lstm, compiled, inputs, mode, case.states, dtype == "amp")
    job()
    return job


PEER = Peer(
    "torch-compile",
    "torch.compile",
    modules=("torch",),
    pip="torch",
    supports=_supports,
    prepare=partial(_prepare, False),
    slow_setup=True,
)
FROZEN = Peer(
    "torch-compile-frozen",
    "torch.compile, inductor with frozen weights",
    modules=("torch",),
    pip="torch",
    supports=_supports_frozen,
    prepare=partial(_prepare, True),
    slow_setup=True,
)
