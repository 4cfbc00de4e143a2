"""What a peer is: another way to run the same call, set up as its own documentation recommends."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..cases import Case


class Runnable(Protocol):
    """One candidate with a case's inputs, ready to be run again and again."""

    def __call__(self) -> object:
        """What is timed: one call."""

    def results(self) -> dict[str, Tensor]:
        """Runs once; names as in ``jobs.Job.results``: output, h_n, c_n, in training the gradients."""


@dataclass(frozen=True)
class Peer:
    """A line of the table ``PEERS``. Modules are imported within ``prepare``: each runs in a process of its own."""

    name: str
    summary: str
    modules: tuple[str, ...]
    """What must be importable; where one is not, the peer is listed as missing."""
    pip: str
    """The names under which pip brings them."""
    supports: Callable[[Case, str, str, str], str | None]
    """(case, mode, dtype, device) -> None, or why this peer cannot take the call. Cheap, imports nothing heavy."""
    prepare: Callable[[Case, Any, str, str], Runnable]
    """(case, inputs, mode, dtype) -> what runs the call: all converting, compiling and packing is done here. The
    inputs are ``jobs.Inputs``, or ``ModelInputs`` where ``case.model`` is set."""
    precision: str | None = None
    """Of the products where it is not the row's dtype: "int8", "tf32"."""
    slow_setup: bool = False
    """Left out of the suite `quick` unless it is asked for by name."""

    def missing(self) -> list[str]:
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


def first_reason(*reasons: tuple[bool, str]) -> str | None:
    """The first reason that applies: for ``Peer.supports``."""
    return next((reason for applies, reason in reasons if applies), None)
