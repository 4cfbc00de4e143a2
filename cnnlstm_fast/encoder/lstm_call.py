"""An LSTM of a plan's top graph, as a call of ``functional.lstm``, which chooses the backend by the call's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..recurrent import functional
from ..recurrent.known_calls import admit_known_stack, run_known_stack

_ZEROS = (torch.ops.aten.new_zeros, torch.ops.aten.zeros)


INSIDE = "inside"
"""In the ``meta`` of a node that belongs into a region whatever it is."""


class LSTMPlace(NamedTuple):
    """What is fixed of one LSTM call of a graph."""

    module: str
    """The name of the module that owns its first weight, or "" where the weights are computed."""
    bidirectional: bool
    all_cells: bool


def replace(node: fx.Node, k: int, path_of: dict[str, str]) -> LSTMPlace:
    """Makes a node of the LSTM operator the call ``lstm_K(input, h0, c0, weights, lengths, reset)``.

    Args:
        path_of: the Parameters' names by the targets of ``get_attr`` nodes.

    Raises:
        ValueError: the call has packed input or dropout.
    """
    arguments: tuple[Any, ...] = node.args
    x, h0, c0, weights, batch_sizes, lengths, reset, mask, bidirectional, _, all_cells, _ = arguments
    if batch_sizes is not None or mask is not None:
        raise ValueError("an LSTM with packed input or dropout")
    if all(isinstance(s, fx.Node) and _packet(s) in _ZEROS for s in (h0, c0)):
        h0 = c0 = None  # made where the LSTM runs
    node.op, node.target = "call_module", f"lstm_{k}"
    node.args = (x, h0, c0, weights, lengths, reset)
    first = weights[0]
    path = path_of.get(first.target, "") if first.op == "get_attr" else ""
    return LSTMPlace(path.rpartition(".")[0], bool(bidirectional), bool(all_cells))


def to_pytorch(node: fx.Node) -> bool:
    """Makes a node of the LSTM operator one of PyTorch's, to run inside of a region; returns whether it can be one that
    other engines have, too."""
    arguments: tuple[Any, ...] = node.args
    x, h0, c0, weights, batch_sizes, lengths, reset, mask, bidirectional, _, all_cells, _ = arguments
    if any(given is not None for given in (batch_sizes, lengths, reset, mask)) or all_cells:
        return False
    input_weight, hidden_weight, *others = (w.meta.get("spec") for w in weights)
    if None in (input_weight, hidden_weight) or hidden_weight.shape[0] != 4 * hidden_weight.shape[1]:
        return False
    bias = bool(others) and len(others[0].shape) == 1
    layers = len(weights) // ((2 + 2 * bias) * (1 + bool(bidirectional)))
    node.target = torch.ops.aten.lstm.input
    node.args = (x, [h0, c0], list(weights), bias, layers, 0.0, False, bool(bidirectional), False)
    node.kwargs = {}
    return True


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


class LSTMCall:
    """Runs one place's calls, with the results of the operator: output, h_n, c_n, cells.

    Args:
        dtype: in which to compute, the dtype of the weights that a call is given; None for that of its input. The
            results have the input's dtype.
    """

    def __init__(self, place: LSTMPlace, backend: str, dtype: torch.dtype | None = None) -> None:
        self._place, self._backend, self._dtype = place, backend, dtype

    def __call__(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, ...]:
        outside = x.dtype
        if self._dtype is not None:
            x = x.to(self._dtype)
            h0, c0 = (None if s is None else s.to(self._dtype) for s in (h0, c0))
        results = self._run(x, h0, c0, weights, lengths, reset)
        return results if self._dtype is None else tuple(t.to(outside) for t in results)

    def _run(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, ...]:
        two = self._place.bidirectional
        simple = lengths is None and reset is None and not self._place.all_cells
        if simple and (known := run_known_stack(self._backend, weights, x, h0, c0, two)) is not None:
            return known
        H, P = weights[0].size(0) // 4, weights[1].size(1)
        bias = len(weights) > 2 and weights[2].dim() == 1
        each = 2 + 2 * bias + (P < H)
        call = functional.canonicalise(
            x,
            None if h0 is None or c0 is None else (h0, c0),
            weights,
            num_layers=len(weights) // (each * (2 if two else 1)),
            bias=bias,
            bidirectional=two,
            proj_size=P if P < H else 0,
            batch_first=False,
            dropout=0.0,
            lengths=lengths,
            reset=reset,
            all_cells=self._place.all_cells,
            backend=self._backend,
            recompute=False,
        )
        plan = functional.plan_of(call)
        if simple:
            admit_known_stack(self._backend, weights, x, h0, c0, two, plan.choice.backend.name)
        output, states, *cells = functional.run(call, plan)
        return (output, *states, *cells)
