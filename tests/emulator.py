"""The CUDA kernels compiled for the CPU, whose threads run in random order: a library for tests only."""

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

ALGORITHMS = ("persistent_block", "persistent_cluster", "persistent_grid", "streaming", "per_step")
MOST_GATE_INPUTS = 256 << 20
SWITCHING = 0.02
"""The probability that a thread yields at a memory access, unless a test sets another."""

_machine = cache(lambda: ctypes.CDLL(str(LIBRARY)))


def load() -> None:
    """If it was built: the backend ``cuda`` then takes CPU tensors."""
    if LIBRARY.exists():
        cuda.load_host_library(LIBRARY)


@contextmanager
def configured(
    algorithm: str = "", nth: int = 0, tf32: bool = False, most_gate_inputs: int = MOST_GATE_INPUTS
) -> Iterator[None]:
    """Every pass takes the nth plan of an algorithm, products of float32 are exact or in TF32, at most so many bytes of
    gate inputs exist at once."""
    torch.ops.cnnlstm_emulator.configure(algorithm, nth, tf32, most_gate_inputs)
    try:
        yield
    finally:
        torch.ops.cnnlstm_emulator.configure("", 0, False, MOST_GATE_INPUTS)


def seed(number: int, switching: float = SWITCHING) -> None:
    """Sets the order of the threads from now on."""
    _machine().cnnlstm_emulator_seed(ctypes.c_uint64(number), ctypes.c_double(switching))


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Injects a fault into the machine, by its name in csrc/cuda_emulator/faults.h."""
    assert _machine().cnnlstm_emulator_plant(fault.encode()) == 0, fault
    try:
        yield
    finally:
        _machine().cnnlstm_emulator_plant(b"")
