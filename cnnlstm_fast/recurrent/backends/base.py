"""The interface of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ..canonical import LSTMSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Has torch.compile call the function instead of tracing it: ``torch.compiler.assume_constant_result``, which would
    import Dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Outputs(NamedTuple):
    """The results of the operator; for packed input T, B are one dimension of N rows. A result that was not requested
    is an empty tensor of shape (0,)."""

    output: Tensor  # (T, B, D*P)
    h_n: Tensor  # (L*D, B, P)
    c_n: Tensor  # (L*D, B, H)
    cells: Tensor  # (L*D, T, B, H): every step's cell state
    gates: Tensor  # (L*D, T, B, 4H): activated gates i f g o
    hidden: Tensor  # (L-1, T, B, D*P): outputs of the inner layers, before dropout


def without_saved(output: Tensor, h_n: Tensor, c_n: Tensor, cells: Tensor | None = None) -> Outputs:
    """The outputs of differentiable code. Every absent one is a separate empty tensor, since the results of an operator
    must not alias."""
    return Outputs(
        output,
        h_n,
        c_n,
        output.new_empty(0) if cells is None else cells,
        output.new_empty(0),
        output.new_empty(0),
    )


class MeasuredSpeed(NamedTuple):
    """The speed of a backend for a call by measurements, relative to the backends that ``auto`` tries after it."""

    slow: bool  # ``auto`` skips it
    reason: str


def unmeasured(spec: LSTMSpec) -> None:
    """The ``measured_speed`` of a backend that was not measured."""


def unplanned(spec: LSTMSpec) -> None:
    """The ``plan`` of a backend that does not describe one."""


@dataclass(frozen=True)
class Backend:
    """One implementation of the operator, in one of three forms:

    - ``native``: compiled into the operator itself (C++ or CUDA); ``forward`` and ``backward`` stay None.
    - kernels called from Python: ``forward`` and ``backward`` take the arguments of ``lstm`` and
      ``lstm_backward`` in ``operators.schema`` without the last one, and fill all of ``Outputs``.
    - differentiable PyTorch code: ``backward`` is None, and ``forward`` leaves gates and hidden empty. Eager
      calls run it under autograd; in a traced graph, and with ``recompute``, the operator runs it again in the
      backward pass.
    """

    name: str
    summary: str
    supports: Callable[[LSTMSpec], str | None]
    """None, or the reason why this backend does not support the call."""
    measured_speed: Callable[[LSTMSpec], MeasuredSpeed | None] = unmeasured
    """None, or whether ``auto`` skips it by measurements although it supports the call. Called only for supported
    calls."""
    plan: Callable[[LSTMSpec], str | None] = unplanned
    """None, or a description of how it splits the work. Called only for supported calls, and never while running
    one."""
    forward: Callable[..., Outputs] | None = None
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, list[Tensor]]] | None = None
    step: Callable[..., tuple[Tensor, Tensor]] | None = None
    """Differentiable code for the step of a cell, which then never goes through the operator, also in a traced graph:
    takes x (B, I), the pair h, c (B, H) and each of the weights, and returns the next pair."""
    native: bool = False
    approximate: bool = False
    """Its results differ from PyTorch's beyond rounding: ``auto`` never selects it, and the limit of its errors is
    ``contract.APPROXIMATE``."""
    own_dropout: bool = False
    """In an eager call it applies the dropout between the layers itself (``forward(..., dropout=p)``)."""

    def describe(self, spec: LSTMSpec) -> str:
        """How it would run a call that it supports, selected or not."""
        plan = self.plan(spec)
        return self.summary if plan is None else f"{self.summary}; {plan}"

    @property
    def differentiable(self) -> bool:
        return not self.native and self.backward is None

    @property
    def saves(self) -> bool:
        """Whether its forward fills cells, gates and hidden for its backward."""
        return not self.differentiable
