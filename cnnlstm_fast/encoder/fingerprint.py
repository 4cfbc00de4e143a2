"""A fingerprint of a module and a call: equal only if capture would find the same graph.

It covers the structure, the code of every class and of the Python functions that this code names, plain attributes, the
shapes of weights and arguments, the versions of the packages and the machine. It does not cover the weights' values.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from .._version import __version__
from ..recurrent.class_swap import is_fast
from .engines import ENGINES

_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)


def fingerprint(
    module: nn.Module, leaves: tuple[Any, ...], tensors: tuple[Tensor, ...], *options: Any
) -> str:
    """A hexadecimal digest.

    Args:
        leaves: the flattened arguments of the call, with a text in the place of tensors.
        options: whatever else the choice depends on.
    """
    digest = hashlib.sha256()
    for text in _parts(module, leaves, tensors, options):
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(
    module: nn.Module, leaves: tuple[Any, ...], tensors: tuple[Tensor, ...], options: tuple[Any, ...]
) -> Iterator[str]:
    yield _environment()
    yield repr((torch.get_num_threads(), options, leaves))
    for tensor in tensors:
        yield repr((tensor.dtype, tensor.device.type, tuple(tensor.shape), tensor.stride()))
    yield structure(module)


def structure(module: nn.Module) -> str:
    """A digest of what a capture of the module depends on but the call: all but the weights' values and hooks."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        cls: Any = type(part).original_class if is_fast(part) else type(part)
        digest.update(f"{name}: {cls.__module__}.{cls.__qualname__} {_code_of_class(cls)}".encode())
        for key, value in sorted(part.__dict__.items()):
            if not key.startswith("_") or key in ("_parameters", "_buffers"):
                digest.update(f"{key}={_text(value)}\0".encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.device.type}"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, dict):
        return str([(_text(k), _text(v)) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[_text(v) for v in value]}"
    if isinstance(value, types.FunctionType):
        return _code(value, set())
    return f"{type(value).__module__}.{type(value).__qualname__}"


@cache
def _environment() -> str:
    packages = ["torch", *(name for engine in ENGINES.values() for name in engine.modules)]
    facts = _native.facts()
    return repr(
        (
            __version__,
            [(name, _version(name)) for name in packages],
            platform.python_version(),
            platform.machine(),
            facts.get("cpu", {}).get("name"),
            facts.get("cpu", {}).get("active_isa"),
            facts["notes"].get("compiler"),
        )
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _code_of_class(cls: type) -> str:
    """The code of the class and its bases; PyTorch's own is known by its version."""
    seen: set[int] = set()
    return "".join(
        f"{name}:{_code(function, seen)}"
        for base in cls.__mro__
        if not _is_library(base.__module__)
        for name, function in sorted(vars(base).items())
    )


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in ("torch", "builtins", "cnnlstm_fast")


def _code(value: Any, seen: set[int]) -> str:
    """The code of a function, of the functions that it names, and of its constants."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        return "".join(_code(f, seen) for f in (value.fget, value.fset) if f is not None)
    if not isinstance(value, types.FunctionType):
        return repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__
    if id(value) in seen or _is_library(value.__module__):
        return value.__qualname__
    seen.add(id(value))
    closure = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
    named = [value.__globals__[n] for n in _names(value.__code__) if n in value.__globals__]
    related = [_code(v, seen) for v in (*named, *closure, *(value.__defaults__ or ()))]
    return f"{_digest(value.__code__)}{related}"


def _names(code: types.CodeType) -> list[str]:
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return [*code.co_names, *inner]


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _digest(code: types.CodeType) -> str:
    constants = [_digest(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256(
        repr((code.co_code, code.co_names, code.co_varnames, constants)).encode()
    ).hexdigest()
