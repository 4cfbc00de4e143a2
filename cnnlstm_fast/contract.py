"""The error contract of verify, the tests and the benchmarks: the definition of "the same numbers".

The error is ||out - ref|| / ||ref|| against the float64 reference. A result passes if its error is at most twice that
of PyTorch's own kernel in the same dtype, plus a small constant for cases where PyTorch happens to be exact. A gradient
that is zero by mathematics, such as that of a bias before a batch norm, is rounding errors alone in every
implementation: its error is relative to all gradients together.

The error of a few rounded numbers varies by more than a factor of 2. If a result fails, more results are drawn, and
the error is that of all draws as one tensor, including those that failed: random variation averages out, a larger
error does not, and a single wrong number still exceeds the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 1e-3}

APPROXIMATE = 1e-1
"""The error limit of an approximate backend (int8 products), which runs only where it is named."""

MOST_DRAWS = 32

ZERO = 1e-12
"""A gradient that is smaller than this part of all gradients together in float64 is zero but for rounding."""


def bound(eager_error: float, dtype: torch.dtype) -> float:
    """The error limit, by PyTorch's own error."""
    return 2.0 * eager_error + FLOOR[dtype]


class Result(NamedTuple):
    """One result of one draw. ``dtype`` is that of the computation, ``fast`` is None if the result is missing."""

    what: str
    dtype: torch.dtype
    fast: Tensor | None
    eager: Tensor
    exact: Tensor


@dataclass(frozen=True)
class ErrorRow:
    """The error of one output or gradient, PyTorch's own error, and the limit."""

    what: str
    eager: float
    fast: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.fast <= self.limit


def relative_error(out: Tensor, ref: Tensor, total: float = 0.0) -> float:
    """||out - ref|| / ||ref|| in float64; infinite if ``out`` is not finite.

    Args:
        total: for a gradient, the norm of all gradients of the reference together, which takes the place of ||ref||
            where that is ``ZERO`` of it.
    """
    return _relative(_distance(out, ref), _scale(norm(ref), total))


def norm(t: Tensor) -> float:
    """The square root of the sum of the squares, in float64."""
    return torch.linalg.vector_norm(t.detach().double()).item()


def compare(
    draw: Callable[[int], Iterable[Result]],
    draws: int = 1,
    most: int = MOST_DRAWS,
    limit: Callable[[float, torch.dtype], float] = bound,
) -> list[ErrorRow]:
    """The error of every result over ``draws`` draws or, if one fails, over ``most``.

    Args:
        draw: yields the results of the k-th draw of fresh numbers, with the same names each time; those of gradients
            begin with "gradient".
        limit: the error limit, by PyTorch's own error and the dtype.
    """
    squares: dict[str, list[float]] = {}
    dtypes: dict[str, torch.dtype] = {}
    rows: list[ErrorRow] = []
    for first, end in ((0, draws), (draws, most)):
        for k in range(first, end):
            for what, dtype, fast, eager, exact in draw(k):
                distances = math.inf if fast is None else _distance(fast, exact), _distance(eager, exact)
                sums = squares.setdefault(what, [0.0, 0.0, 0.0])
                for j, value in enumerate((*distances, norm(exact))):
                    sums[j] += value * value
                dtypes[what] = dtype
        rows = []
        total = math.hypot(*(math.sqrt(sums[2]) for what, sums in squares.items() if is_gradient(what)))
        for what, sums in squares.items():
            fast_off, eager_off, size = map(math.sqrt, sums)
            scale = _scale(size, total if is_gradient(what) else 0.0)
            eager_error = _relative(eager_off, scale)
            rows.append(
                ErrorRow(what, eager_error, _relative(fast_off, scale), limit(eager_error, dtypes[what]))
            )
        if all(row.ok for row in rows):
            break
    return rows


def is_gradient(what: str) -> bool:
    """By the name of a result."""
    return what.startswith("gradient")


def _scale(size: float, total: float) -> float:
    """What the error of a result is relative to, by its norm."""
    return total if size <= ZERO * total else size


def _distance(out: Tensor, ref: Tensor) -> float:
    if out.shape != ref.shape:
        raise ValueError(f"out: expected the reference's shape {tuple(ref.shape)}, got {tuple(out.shape)}.")
    distance = norm(out.detach().double().cpu() - ref.detach().double().cpu())
    return math.inf if math.isnan(distance) else distance


def _relative(distance: float, scale: float) -> float:
    return distance / scale if scale > 0.0 else distance
