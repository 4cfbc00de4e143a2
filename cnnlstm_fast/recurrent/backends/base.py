"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..canonical import LSTMSpec


class Outputs(NamedTuple):
    """What the operator returns; T, B become one dimension of N rows for packed input. A part that was not
    asked for is an empty tensor of shape (0,)."""

    output: Tensor  # (T, B, D*P)
    h_n: Tensor  # (L*D, B, P)
    c_n: Tensor  # (L*D, B, H)
    cells: Tensor  # (L*D, T, B, H): every step's cell state
    gates: Tensor  # (L*D, T, B, 4H): activated gates i f g o
    hidden: Tensor  # (L-1, T, B, D*P): outputs of the inner layers, before dropout


def without_saved(output: Tensor, h_n: Tensor, c_n: Tensor, cells: Tensor | None = None) -> Outputs:
    """The outputs of differentiable code; every absent part is a tensor of its own, as an operator's must be."""
    return Outputs(
        output,
        h_n,
        c_n,
        output.new_empty(0) if cells is None else cells,
        output.new_empty(0),
        output.new_empty(0),
    )


class Pace(NamedTuple):
    """What measurements say of a backend on a call, beside those that ``auto`` would try after it."""

    slow: bool  # ``auto`` passes over it
    reason: str


def unmeasured(spec: LSTMSpec) -> None:
    """A backend of whose speed nothing is known."""


def unplanned(spec: LSTMSpec) -> None:
    """A backend that runs all calls alike, or does not tell how."""


@dataclass(frozen=True)
class Backend:
    """One way to run the operator. It comes in three forms:

    - ``native``: compiled into the operator itself (C++ or CUDA); ``forward`` and ``backward`` stay None.
    - kernels called from Python: ``forward`` and ``backward`` take the arguments of ``lstm`` and
      ``lstm_backward`` in ``operators.schema`` without the last one, and fill all of ``Outputs``.
    - differentiable PyTorch code: ``backward`` is None, and ``forward`` leaves gates and hidden empty. Eager
      calls run it as it is; within a traced graph, and where the caller asks for it, the operator recomputes it for
      the backward pass.
    """

    name: str
    summary: str
    supports: Callable[[LSTMSpec], str | None]
    """None, or the reason why this backend cannot take the call."""
    pace: Callable[[LSTMSpec], Pace | None] = unmeasured
    """None, or whether measurements let ``auto`` pass over it although it could. Asked only where it can."""
    plan: Callable[[LSTMSpec], str | None] = unplanned
    """None, or how it splits the call, in words. Asked only where it can, and never on the way of a call."""
    forward: Callable[..., Outputs] | None = None
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, list[Tensor]]] | None = None
    native: bool = False
    approximate: bool = False
    """Its numbers are not the same: ``auto`` never takes it, and its errors have the limit ``contract.APPROXIMATE``."""
    own_dropout: bool = False
    """In an eager call it draws the dropout between the layers itself (``forward(..., dropout=p)``)."""

    def describe(self, spec: LSTMSpec) -> str:
        """How it would run a call that it can take, whoever chose it."""
        plan = self.plan(spec)
        return self.summary if plan is None else f"{self.summary}; {plan}"

    @property
    def differentiable(self) -> bool:
        return not self.native and self.backward is None

    @property
    def saves(self) -> bool:
        """Whether its forward fills cells, gates and hidden for its backward."""
        return not self.differentiable
