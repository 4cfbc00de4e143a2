"""The CUDA kernels compiled for the CPU, whose threads run in an order drawn at random: a library for tests alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from cnnlstm_fast.recurrent.backends import cuda

LIBRARY = Path(__file__).resolve().parents[1] / "build" / "emulator" / "libcnnlstm_emulator.so"
"""`make test` builds it."""

WAYS = ("block", "cluster", "grid", "stream", "step")
MOST_GATE_INPUTS = 256 << 20
SWITCHING = 0.02
"""How often a thread that touches memory lets another one go first, unless a test says otherwise."""

_machine = cache(lambda: ctypes.CDLL(str(LIBRARY)))


def load() -> None:
    """Where it was built: the backend ``cuda`` then takes CPU tensors."""
    if LIBRARY.exists():
        cuda.load_host_library(LIBRARY)


@contextmanager
def pretending(
    way: str = "", nth: int = 0, tf32: bool = False, most_gate_inputs: int = MOST_GATE_INPUTS
) -> Iterator[None]:
    """Every pass takes the nth plan of a way, products of float32 are exact or of TF32, so many bytes of gate inputs
    exist at once."""
    torch.ops.cnnlstm_emulator.pretend(way, nth, tf32, most_gate_inputs)
    try:
        yield
    finally:
        torch.ops.cnnlstm_emulator.pretend("", 0, False, MOST_GATE_INPUTS)


def seed(number: int, switching: float = SWITCHING) -> None:
    """The order of the threads from now on."""
    _machine().cnnlstm_emulator_seed(ctypes.c_uint64(number), ctypes.c_double(switching))


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """A fault of the machine, by its name in csrc/cuda_emulator/faults.h."""
    assert _machine().cnnlstm_emulator_plant(fault.encode()) == 0, fault
    try:
        yield
    finally:
        _machine().cnnlstm_emulator_plant(b"")
