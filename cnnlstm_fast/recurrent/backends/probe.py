"""A short measurement of one call of an LSTM or of a cell: ours against ``aten``, in turns, on made-up tensors."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...other_work import OtherWork
from ...timing import Ratio, interleave, paired_ratio, timed
from ..canonical import LSTMSpec
from .measured import SLOW, Point

LOOP = 20
"""Steps of the loop in which cells are measured."""
MOST_LAYERS = 2
"""A first and an inner layer stand for a stack."""
LEAST_T, LONG_CALL = 8, 0.04
"""A call that is expected to take more than ``LONG_CALL`` seconds is measured with fewer steps, down to ``LEAST_T``:
from there on its time grows in proportion to them."""
SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 0.1, 5, 40
"""Of the rounds. A round is one call of each."""
LONG_ROUNDS, LONG_ROUND = 3, 0.05
"""The least rounds where one takes so many seconds."""
ATTEMPTS = 3
"""Rounds are added up to twice where the first ones were disturbed, or do not tell noise from a loss."""
WIDEST, OTHERS, TICKS = 1.3, 0.25, 0.03
"""A measurement was disturbed if its interval is wider than this factor, or if other processes took more than this part
of a core from the threads. The system counts their time in ticks, of which a few make no difference."""

FLOP_RATE, STEP_BYTES, STEP_SECONDS = 5e10, 2e10, 2e-5
"""A rough machine, to know beforehand which calls are long: FLOP/s of a thread, bytes/s at which a step reads the
recurrent weights, seconds of a step without work."""


def measured_sizes(spec: LSTMSpec) -> tuple[int, int]:
    """T and the number of layers with which a call is measured."""
    assert spec.T is not None
    if spec.cell:
        return LOOP, 1
    layers = min(spec.num_layers, MOST_LAYERS)
    return min(spec.T, max(LEAST_T, int(LONG_CALL / (layers * _seconds_of_step(spec))))), layers


def expected_seconds(spec: LSTMSpec) -> float:
    """Of one call of the measurement, roughly."""
    T, layers = measured_sizes(spec)
    return T * layers * _seconds_of_step(spec)


def weight_bytes(spec: LSTMSpec) -> int:
    layers = measured_sizes(spec)[1]
    inputs = spec.input_size + (layers - 1) * spec.directions * spec.hidden_size
    numbers = 4 * spec.hidden_size * (inputs + layers * spec.hidden_size) * spec.directions
    return numbers * spec.dtype.itemsize


def _seconds_of_step(spec: LSTMSpec) -> float:
    assert spec.B is not None
    H, I = spec.hidden_size, spec.input_size
    arithmetic = 8 * spec.B * H * (I + H) / (FLOP_RATE * torch.get_num_threads())
    reading = 4 * H * H * spec.dtype.itemsize / STEP_BYTES
    return (STEP_SECONDS + max(arithmetic, reading)) * spec.directions * (3 if spec.grad else 1)


def probe(spec: LSTMSpec, limit: float) -> Point | None:
    """Measures the call. Takes at most about ``limit`` seconds; None where that is too little for a result, or where
    the measurement was disturbed.

    The caller's modes (autocast, gradients, torch functions) and random numbers stay as they are.
    """
    T, _ = measured_sizes(spec)
    with (
        torch._C.DisableTorchFunction(),
        torch.autocast(spec.device, enabled=False),
        torch.set_grad_enabled(spec.grad),
    ):
        calls = {name: _call(spec, name) for name in ("cpu", "aten")}
        spent = 0.0
        for _ in range(2):  # the first round also sets up libraries, threads and memory
            before = spent
            for call in calls.values():
                spent += timed(call)
                if spent > limit / 2:
                    return None
        once, start = spent - before, time.perf_counter() - spent
        rounds = LEAST_ROUNDS if once < LONG_ROUND else LONG_ROUNDS
        times: dict[str, list[float]] = {name: [] for name in calls}
        others, found = OtherWork(), None
        for _ in range(ATTEMPTS):
            left = limit - (time.perf_counter() - start)
            if left < rounds * once:
                break
            new = interleave(calls, min(SECONDS, left), rounds, MOST_ROUNDS, warm_up=False)
            times = {name: taken + new[name] for name, taken in times.items()}
            work = others.seconds()
            ratio = paired_ratio(times["aten"], times["cpu"])
            found = None if _is_disturbed(ratio, *work) else ratio
            if found is not None and not (found.value < SLOW and found.high >= 1.0):
                break
    if found is None:
        return None
    ours, theirs = (_rounded(1e6 * statistics.median(of)) for of in (times["cpu"], times["aten"]))
    value, low, high = (_rounded(x) for x in (found.value, found.low, found.high))
    return Point(T, spec.B or 0, spec.input_size, spec.hidden_size, ours, theirs, value, low, high, None)


def _is_disturbed(ratio: Ratio, others: float, passed: float) -> bool:
    """Threads that wait for each other take many times as long where one of them has lost its core, and PyTorch's
    kernel, which waits more often, longer than ours: the ratio of such times must not be kept."""
    free = max(0, (os.cpu_count() or 1) - torch.get_num_threads())
    return ratio.high > WIDEST * ratio.low or others > (free + OTHERS) * passed + TICKS


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _call(spec: LSTMSpec, backend: str) -> Callable[[], Any]:
    from .. import cell, functional  # they import the table of backends

    T, layers = measured_sizes(spec)
    B, I, H, D = spec.B or 0, spec.input_size, spec.hidden_size, spec.directions
    weights = []
    for size in (I, *[D * H] * (layers - 1)):
        for _ in range(D):
            weights += [_filled(spec, 4 * H, size), _filled(spec, 4 * H, H)]
            weights += [_filled(spec, 4 * H), _filled(spec, 4 * H)] if spec.bias else []
    x = _filled(spec, T, B, I)
    layer = SimpleNamespace(hidden_size=H, backend=backend)  # what a cell's call reads of its layer

    def forward() -> Tensor:
        if not spec.cell:
            return functional.lstm(
                *(x, None, weights),
                num_layers=layers,
                bias=spec.bias,
                bidirectional=spec.bidirectional,
                backend=backend,
            )[0]
        states = None
        for step in x:
            states = cell.run(layer, step, states, weights)
        assert states is not None
        return states[0]

    if not spec.grad:
        return forward
    leaves = [t.requires_grad_() for t in (x, *weights)]
    grad = _filled(spec, B * H if spec.cell else T * B * D * H)
    # a loss: given a gradient, autograd would import SymPy at its first use, which takes half a second
    return lambda: torch.autograd.grad(torch.dot(forward().reshape(-1), grad), leaves)


def _filled(spec: LSTMSpec, *shape: int) -> Tensor:
    """Small numbers of both signs, without a random generator, which would take longer than the calls."""
    some = torch.linspace(-0.1, 0.1, 1021, dtype=spec.dtype, device=spec.device)
    count = math.prod(shape)
    return some.repeat(-(-count // len(some)))[:count].view(shape)
