"""Loads the compiled part: the operators' library, the extension module ``_C``, which describes the build and the
machine, and ``_guard``, which looks into PyTorch's objects.

A package without it is valid and not an error: ``available`` is False and ``reason`` gives the cause. A library that
was built and does not load is an error: one warning gives the cause and the remedy.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_HERE = Path(__file__).parent
_REMEDY = (
    "Build it again: `make build` in a checkout, else "
    "`pip install --no-build-isolation --force-reinstall --no-deps cnnlstm-fast`."
)


def _read_notes() -> dict[str, Any]:
    path = _HERE / "_build_notes.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _load() -> tuple[ModuleType | None, str | None]:
    """The module ``_C``, and the reason why the compiled part is not available, if it is not."""
    if not notes.get("native"):
        why = notes.get("native_reason", "nothing was built in this folder (run `make build`)")
        return None, f"the native part was not built: {why}"
    module = None
    try:
        module = importlib.import_module("cnnlstm_fast._C")
        # A library for another PyTorch may load and crash later, so it is not loaded.
        built, running = notes["torch"], torch.__version__
        if _minor(built) != _minor(running):
            raise ImportError(f"it was built for PyTorch {_minor(built)}, and this is PyTorch {running}")
        torch.ops.load_library(str(_HERE / "libcnnlstm_fast.so"))
        importlib.import_module("cnnlstm_fast._guard")
    except (ImportError, OSError) as error:
        # the message of PyTorch names the file; the dynamic linker's message is in the cause
        why = f"the native part was built but cannot be used: {error.__cause__ or error}"
        warnings.warn(f"cnnlstm_fast: {why}. Running without it, more slowly. {_REMEDY}", stacklevel=2)
        return module, why
    return module, None


notes: dict[str, Any] = _read_notes()
"""The record of the build: ``native``, ``cuda``; where false, ``native_reason``, ``cuda_reason``."""

_C, reason = _load()
available: bool = reason is None


def is_forked_child() -> bool:
    """Whether this process was forked from one that had loaded the compiled part. OpenMP's threads do not exist in it,
    and libgomp would wait for them."""
    return available and torch.ops.cnnlstm_fast.is_forked_child()


def facts() -> dict[str, Any]:
    """What was built and what this machine has.

    Returns:
        ``available``, ``reason`` (why not, or None) and ``notes`` always; ``build``, ``cpu`` and
        ``cuda_devices`` where the module ``_C`` loads. ``cuda_devices`` is empty without the CUDA part, a driver or
        a GPU.

    Raises:
        RuntimeError: CNNLSTM_CPU_ISA is not an instruction set of this machine, or CUDA reports an error.
    """
    found: dict[str, Any] = {"available": available, "reason": reason, "notes": notes}
    if _C is not None:
        found["build"] = dict(_C.build)
        found["cpu"] = _C.cpu()
        found["cuda_devices"] = _C.cuda_devices() if hasattr(_C, "cuda_devices") else []
    return found
