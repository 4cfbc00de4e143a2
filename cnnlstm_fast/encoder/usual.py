"""A module's own forward, and whether results are its."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..contract import FLOOR, bound, relative_error
from .agreement import agree

RUNNER = "_cnnlstm_fast_runner"
"""The entry of a module's ``__dict__`` that holds its runner."""


def original_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The module's forward without a runner."""
    cls = type(module)
    forward = getattr(cls, "original_class", cls).forward if RUNNER in module.__dict__ else cls.forward
    return forward(module, *args, **kwargs)


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a nested result."""
    return [v for v in pytree.tree_leaves(result) if isinstance(v, Tensor)]


def same_results(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    precision: str | None,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Whether ``found`` is the result of the module's call as well as ``expected``, which its own forward has returned:
    equal up to a few roundings or, where a small result is left of large terms, about as near to the float64 result."""
    if agree(found, expected, precision):
        return True
    if precision is not None or [(t.shape, t.dtype) for t in found] != [(t.shape, t.dtype) for t in expected]:
        return False
    try:
        with torch.no_grad():
            double = copy.deepcopy(module).double()
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs)
            )
            exact = tensors_of(original_forward(double, args, kwargs))
    except Exception:  # such as operators with a dtype among their arguments
        return False
    return all(
        relative_error(out, ref) <= bound(relative_error(own, ref), out.dtype)
        if out.dtype in FLOOR
        else torch.equal(out, own)
        for out, own, ref in zip(found, expected, exact, strict=True)
    )
