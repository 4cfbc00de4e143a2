"""Whether results agree, where there is no time for a float64 reference or none exists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import APPROXIMATE, FLOOR, relative_error

WITHOUT_REFERENCE = 20
"""Two float32 results that both keep the contract differ by a few roundings more than either does from float64."""


def agree(found: Sequence[Tensor], wanted: Sequence[Tensor], precision: str | None) -> bool:
    """Whether two lists of results are the same up to rounding, by ``contract``'s floors.

    Args:
        precision: of the products; with one by request, the limit is that of an approximate backend.
    """
    return len(found) == len(wanted) and all(
        _agree(a, b, precision) for a, b in zip(found, wanted, strict=True)
    )


def _agree(a: Tensor, b: Tensor, precision: str | None) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype not in FLOOR:
        return torch.equal(a, b)
    limit = APPROXIMATE if precision is not None else WITHOUT_REFERENCE * FLOOR[a.dtype]
    return relative_error(a, b) <= limit


def first_line(error: BaseException) -> str:
    """What an error says, in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
