"""This machine: the class of its CPU, which chooses among the shipped tables, and its identity, under which what was
measured on it is kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ... import _native
from ...files import cache_folder

ISAS = ("portable", "avx2", "avx512", "avx512_amx")
"""The instruction sets for which the kernels differ in speed, the slowest first."""


class Machine(NamedTuple):
    """A class of CPUs with similar ratios."""

    isa: str  # of ISAS
    threads: int

    def __str__(self) -> str:
        return f"{self.isa}, {self.threads} thread{'s' * (self.threads != 1)}"

    @property
    def file(self) -> str:
        return f"{self.isa}-{self.threads}.json"


def running() -> Machine:
    """The class of this machine with this process's number of threads."""
    return Machine(_isa(), torch.get_num_threads())


@lru_cache(maxsize=1)
def _isa() -> str:
    isa: str = _native.facts()["cpu"]["active_isa"]
    amx = isa == "avx512" and torch.cpu._is_amx_tile_supported()  # the kernels call PyTorch's products there
    return "avx512_amx" if amx else isa


def cpu_name() -> str:
    """The processor's name as the tables record it."""
    return str(_cpu()["name"])


@lru_cache(maxsize=1)
def _cpu() -> dict[str, Any]:
    cpu: dict[str, Any] = _native.facts()["cpu"]
    return cpu


def learns() -> bool:
    """Whether what was measured on this machine counts. With CNNLSTM_CALIBRATE=0 and under PyTorch's deterministic
    algorithms the shipped tables alone do, so that every process on every day makes the same choice."""
    return os.environ.get("CNNLSTM_CALIBRATE") != "0" and not torch.are_deterministic_algorithms_enabled()


class Identity(NamedTuple):
    """All that a measurement on this machine depends on; one of another identity is not used."""

    cpu: str
    caches: str
    """Of a core, and the number of cores: virtual machines often hide the processor's model."""
    isa: str
    threads: int
    torch: str
    kernels: str
    """A digest of the compiled library."""

    def file(self, what: str) -> Path:
        """Where ``what`` ("calls" or "table") is kept; raises RuntimeError where there is no home directory."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:16]
        return cache_folder("recurrent") / f"{what}-{digest}.json"


@lru_cache(maxsize=64)
def identity(machine: Machine) -> Identity:
    cpu = _cpu()
    sizes = " ".join(f"{level}={size}" for level, size in cpu["cache_bytes"].items())
    caches = f"{sizes} cores={cpu['cores']}"
    return Identity(cpu_name(), caches, machine.isa, machine.threads, str(torch.__version__), _kernels())


@lru_cache(maxsize=1)
def _kernels() -> str:
    library = Path(_native.__file__).with_name("libcnnlstm_fast.so")
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]
