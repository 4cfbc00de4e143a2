"""Engine: what can run a region."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..region import Region

Run = Callable[..., tuple[Tensor, ...]]
"""Takes the region's inputs (any strides), returns its outputs: fresh tensors of any strides. Called without gradient;
several threads may call it at once."""


@dataclass(frozen=True)
class Options:
    """How a region is to be run. ``threads``: at most so many; ``precision``: None for the dtype of the region's
    tensors, "bf16" for products of bfloat16 with the same dtypes at the borders; ``known``: the engine was built for
    this region before, and compared with it then; ``alone``: the region is all
    of its module, so that nothing else follows a call at once; ``deadline``: by ``time.monotonic``, after it an engine
    whose error is above the limit on one input is refused without a comparison on more."""

    threads: int
    precision: str | None = None
    known: bool = False
    alone: bool = False
    deadline: float = math.inf


@dataclass(frozen=True)
class Engine:
    """One line of the table ``ENGINES``. ``build`` prepares a region and may raise any exception: its message is the
    reason why the engine does not run the region. Who calls it compares the results (check.py). It copies what it needs
    of the weights, in a layout of its own."""

    name: str
    title: str
    build: Callable[[Region, tuple[Tensor, ...], Options], Run]
    supports: Callable[[Region, Options], str | None] = lambda region, options: None
    """None, or why the engine cannot run the region."""
    modules: tuple[str, ...] = ()
    """The modules that it imports beyond PyTorch."""
    pip: str = ""
    """What pip calls them."""
    device: str = "cpu"
    setup_seconds: float = 0.0
    """About how many seconds it takes to build, for each operator of a region; 0 where it does not matter."""
    own_threads: bool = False
    """Whether threads other than PyTorch's do its work, which PyTorch's must leave their cores to."""
    own_lstm: bool = False
    """Whether it has an LSTM of its own, so that it can run a module as a whole."""

    def missing(self) -> str | None:
        """None, or which package is missing."""
        if all(importlib.util.find_spec(name) for name in self.modules):
            return None
        return f"not installed: pip install {self.pip}"


def first_reason(*cases: tuple[Any, str]) -> str | None:
    """The reason of the first case that holds."""
    return next((reason for holds, reason in cases if holds), None)
