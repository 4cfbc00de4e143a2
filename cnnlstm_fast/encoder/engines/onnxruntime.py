"""ONNX Runtime on the CPU, in float32, which is within the limits of bfloat16, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from ... import timing
from ..idle_team import use_idle_team
from ..region import Region
from .base import Engine, Options, Run
from .check import check
from .onnx_model import names, onnx_model, other_float

BOUNDED_SPINS = "1.31"
"""The oldest version that is known to have ``spin_duration_us``."""
SPIN_US, SPIN_ALONE_US = 20, 200
"""Microseconds for which a thread that has nothing to do waits awake. It spares the next call a wake (10 us), but takes
a core from whoever comes next: an LSTM or, where the region is all of its module, the caller."""
SHORT = 1e-3
"""Seconds of a call on the example below which one thread is tried, too: waking the others may take longer than what
they do."""


def _supports(region: Region, options: Options) -> str | None:
    other = other_float(region)
    return None if other is None else f"set up for float32, and the region has {other}"


def _build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
    """The faster of ``options.threads`` and, where a call is short, one thread; measured on the example."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    model = onnx_model(region, example)
    level = levels.ORT_ENABLE_ALL
    spin = SPIN_ALONE_US if options.alone else SPIN_US
    try:
        run = _run(region, _session(model, options.threads, level, spin), options.threads)
        if not options.known:
            check(region, run, example, options)
    except Exception:  # its last level, which changes layouts, has had faults that the one below has not
        level = levels.ORT_ENABLE_EXTENDED
        run = _run(region, _session(model, options.threads, level, spin), options.threads)
    if options.threads > 1 and _is_short(lambda: run(*example)):
        single = _run(region, _session(model, 1, level, spin), 1)
        times = timing.interleave({"many": lambda: run(*example), "one": lambda: single(*example)}, 0.1, 20)
        if timing.median_ratio(times["many"], times["one"]) > 1.0:
            return single
    return run


def _is_short(call: Callable[[], Any]) -> bool:
    """After a first call, which is longer."""
    return timing.timed(call) < 10 * SHORT and min(timing.timed(call) for _ in range(2)) < SHORT


def _session(model: bytes, threads: int, level: Any, spin: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = level
    options.log_severity_level = 4
    # threads that spin within a call spare each operator a wake; after the call they would take PyTorch's cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if TorchVersion(onnxruntime.__version__) >= BOUNDED_SPINS:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # the weights beside the arena, which grows in powers of two
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(region: Region, session: Any, threads: int) -> Run:
    inputs, outputs = names(region)
    # session.run without its checks of the names: 3 of 10 us
    call, eager = getattr(session, "_sess", session).run, region.module.forward

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        feeds = {}
        for name, tensor in zip(inputs, tensors):  # noqa: B905
            if not tensor.numel():
                return eager(*tensors)  # not every operator of ONNX takes an empty tensor
            feeds[name] = (tensor.detach() if tensor.requires_grad else tensor).contiguous().numpy()
        if threads > 1:
            use_idle_team()
        return tuple(
            [torch.from_numpy(found) for found in call(outputs, feeds, None)]
        )  # its memory, handed over

    return run


ENGINE = Engine(
    "onnxruntime",
    "ONNX Runtime, CPU provider",
    _build,
    _supports,
    modules=("onnxruntime", "onnx"),
    pip="onnxruntime onnx",
    own_threads=True,
    own_lstm=True,
)
