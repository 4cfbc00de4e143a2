"""A peer: another implementation of the same call, set up as its own documentation recommends."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..cases import Case


class Runnable(Protocol):
    """One candidate with a case's inputs, ready to run repeatedly."""

    def __call__(self) -> object:
        """The timed call."""

    def results(self) -> dict[str, Tensor]:
        """Runs once; names as in ``jobs.Job.results``: output, h_n, c_n, in training the gradients. Of a whole model as
        in ``jobs.ModelJob.results``."""


@dataclass(frozen=True)
class Peer:
    """An entry of ``PEERS``. Its modules are imported within ``prepare``: every peer runs in a process of its own."""

    name: str
    summary: str
    modules: tuple[str, ...]
    """The modules that it needs; without one of them the peer is listed as missing."""
    pip: str
    """The packages that pip installs them from."""
    supports: Callable[[Case, str, str, str], str | None]
    """(case, mode, dtype, device) -> None, or why this peer cannot run the call. Cheap: imports none of the modules."""
    prepare: Callable[[Case, Any, str, str], Runnable]
    """(case, inputs, mode, dtype) -> the job, after all conversion, compilation and packing. The inputs are
    ``jobs.Inputs``, or ``ModelInputs`` where ``case.model`` is set."""
    precision: str | None = None
    """Precision of the products where it differs from the row's dtype: "int8", "tf32"."""
    slow_setup: bool = False
    """Excluded from the suite `quick` unless it is named."""

    def missing(self) -> list[str]:
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


def first_reason(*reasons: tuple[bool, str]) -> str | None:
    """The first reason that applies: for ``Peer.supports``."""
    return next((reason for applies, reason in reasons if applies), None)
