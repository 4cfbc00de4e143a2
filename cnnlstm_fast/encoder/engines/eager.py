"""The region as PyTorch runs it, one operator after the other."""

from __future__ import annotations

from torch import Tensor

from ..region import Region
from .base import Engine, Options, Run


def _build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
    return region.module.forward


ENGINE = Engine("eager", "PyTorch, operator by operator", _build)
