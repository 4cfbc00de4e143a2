"""Hardware, versions and commit, which every result records."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import cnnlstm_fast
from cnnlstm_fast import _native

ROOT = Path(__file__).parents[2]
FLAGS = {
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "sve", "sve2", "bf16", "i8mm"),
}
"""Instruction sets that may affect an LSTM's speed, named as in /proc/cpuinfo."""
SWITCHES = ("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_CPU_CAPABILITY", "CNNLSTM_")
"""Prefixes of environment variables that change what runs."""


def hardware() -> dict[str, Any]:
    """The CPU, the caches of a core, the cores and threads in use, and the GPUs that PyTorch can use."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "flags": sorted(FLAGS.intersection(flags)),
        "caches": _caches(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": _gpus(),
    }


def versions() -> dict[str, Any]:
    """Versions of the software that runs, and of what compiled it."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cnnlstm_fast": cnnlstm_fast.__version__,
        "native": _native.facts(),
        "pytest_benchmark": _version("pytest-benchmark"),
        "platform": platform.platform(),
        "switches": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SWITCHES)},
    }


def commit() -> dict[str, Any]:
    """``id`` of the checkout, None outside of one; ``dirty`` if a file other than measured results differs from it."""
    if not (ROOT / "setup.py").exists():
        return {"id": None, "dirty": None}  # installed: an enclosing repository is another project's
    found = _git("rev-parse", "HEAD")
    changes = _git(
        "status", "--porcelain", "--", ".", ":!bench/results", ":!cnnlstm_fast/recurrent/backends/tables"
    )
    return {"id": found, "dirty": None if changes is None else bool(changes)}


def _cpuinfo() -> dict[str, str]:
    """The entries of the first core."""
    path = Path("/proc/cpuinfo")
    core = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.split(":", 1) for line in core.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> dict[str, str]:
    """Caches of the first core as the kernel reports them: {"L2": "2048K"}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = (torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count()))
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return [
        {"name": d.name, "sm": 10 * d.major + d.minor, "bytes": d.total_memory, "driver": driver}
        for d in devices
    ]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
