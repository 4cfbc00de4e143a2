"""The table of backends, in the order in which ``auto`` tries them. A new backend takes one file and one line here."""

from __future__ import annotations

from . import aten, cpu, cpu_int8, cuda, reference, triton
from .base import Backend, MeasuredSpeed, Outputs

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        cpu.BACKEND,
        cuda.BACKEND,
        triton.BACKEND,
        aten.BACKEND,
        reference.BACKEND,
        cpu_int8.BACKEND,
    )
}

__all__ = ["BACKENDS", "Backend", "MeasuredSpeed", "Outputs"]
