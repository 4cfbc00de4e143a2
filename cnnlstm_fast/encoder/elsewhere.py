"""Engines for calls of another size than the example's: one row may need others than many rows."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .plan import Plan
from .record import OtherSize
from .split import BETTER, ModuleCall, Split
from .turns import LONG_CALL, Turns
from .usual import original_forward
from .vary import resized

FEW_ROWS, MANY_ROWS = 8, 32
"""An example of fewer rows than ``FEW_ROWS`` is measured with ``MANY_ROWS``, too, any other one with a single row."""


def measure_elsewhere(
    split: Split, engines: dict[int, str], call: ModuleCall, takes: float, seconds: float
) -> OtherSize | None:
    """Measures the engines at another number of rows; None where none are faster there than those of the example.

    Args:
        engines: those for the example, by the region's number.
        takes: seconds of the example's call by them.
        seconds: that the example was measured for; here it is no longer.
    """
    other = _with_other_rows(split.plan, call, takes)
    if other is None:
        return None
    there = replace(split, trials=[replace(t, record=deepcopy(t.record), times={}) for t in split.trials])
    uniform = [there.assignment(found, name, other) for name, found in there.uniform()]
    Turns(uniform).medians(seconds / 2)
    best = there.fastest()
    if best == engines:
        return None
    both = [there.assignment(found, "last", other) for found in (engines, best)]
    instead, found = Turns(both).medians(seconds / 4)
    if found > BETTER * instead:
        return None
    pairs = [(a.numel(), b.numel()) for a, b in zip(call.tensors, other.tensors, strict=True)]
    tensor, (here_n, there_n) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    return OtherSize(
        sizes=[list(t.shape) for t in other.tensors],
        tensor=tensor,
        limit=math.sqrt(here_n * there_n),
        smaller=there_n < here_n,
        engines=list(best.values()),
        seconds=found,
        instead=instead,
    )


def _with_other_rows(plan: Plan, call: ModuleCall, seconds: float) -> ModuleCall | None:
    """The call with another number of rows, the first of the sizes that may vary; None where there is none, the module
    does not take it, or it would last too long."""
    shapes = [node.meta["spec"].shape for node in plan.top.nodes if node.op == "placeholder"]
    rows = next((size for shape in shapes for size in shape if isinstance(size, str)), None)
    if rows is None:
        return None
    dims = [(k, d) for k, shape in enumerate(shapes) for d, size in enumerate(shape) if size == rows]
    now = call.tensors[dims[0][0]].size(dims[0][1])
    then = 1 if now >= FEW_ROWS else MANY_ROWS
    tensors = resized(call.tensors, dict.fromkeys(dims, then))
    if seconds * then / now > LONG_CALL or plan.refused_sizes([t.shape for t in tensors]) is not None:
        return None
    args, kwargs = _with_tensors(call, tensors)
    try:
        original_forward(call.module, args, kwargs)
    except Exception:  # the module takes no such rows
        return None
    return ModuleCall(call.module, args, kwargs, tensors)


def _with_tensors(call: ModuleCall, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = iter(tensors)
    args, kwargs = pytree.tree_map_only(Tensor, lambda _: next(given), (call.args, call.kwargs))
    return args, kwargs
