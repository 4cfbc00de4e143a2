"""LSTM and LSTMCell, the drop-in layers, and the fast classes of subclasses of nn.LSTM and nn.LSTMCell. The computation
is in ``functional.lstm`` and in ``cell``."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import cell, functional
from .canonical import CallKey
from .class_swap import FastClass, swap_class
from .known_calls import admit_known, run_known
from .tracers import run_as_pytorch, tracer_of

States = tuple[Tensor, Tensor]


class _FastForward:
    """The forward of the fast layers, over the attributes of nn.RNNBase."""

    backend: str = "auto"
    """The backend for this layer: "auto" or a name in ``cnnlstm_fast.BACKENDS``."""
    recompute: bool = False
    """Less memory for more time in training, see ``functional.lstm``."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        all_cells: bool = False,
    ) -> tuple[Any, ...]:
        """As nn.LSTM's; ``lengths``, ``reset``, ``all_cells`` and the results: see ``functional.lstm``. Under a tracer
        (``tracers.py``) it is nn.LSTM's."""
        plain = lengths is None and reset is None and not all_cells and not torch.compiler.is_compiling()
        if plain and (known := run_known(self, input, hx)) is not None:
            return known
        if (tracer := tracer_of(input)) is not None:
            if lengths is not None or reset is not None or all_cells:
                raise RuntimeError(
                    f"lengths, reset, all_cells: {tracer} takes only what nn.LSTM has; leave them out."
                )
            m: Any = self
            weights = self._weights()
            named = dict(zip(m._flat_weights_names, weights, strict=True))
            return run_as_pytorch(m, nn.LSTM, tracer, input, hx, {**named, "_flat_weights": weights})
        call = self.call(input, hx, lengths=lengths, reset=reset, all_cells=all_cells)
        plan = functional.plan_of(call)
        if plain:
            admit_known(self, input, hx, plan.choice.backend.name)
        return functional.run(call, plan)

    def key(self, *args: Any, **kwargs: Any) -> CallKey:
        """What the backend of ``forward`` on these arguments depends on."""
        return self.call(*args, **kwargs).key

    def call(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        all_cells: bool = False,
    ) -> functional.Call:
        """What ``forward`` would run on these arguments."""
        m: Any = self
        return functional.canonicalise(
            input,
            hx,
            self._weights(),
            m.num_layers,
            m.bias,
            m.bidirectional,
            m.proj_size,
            m.batch_first,
            m.dropout if m.training else 0.0,
            lengths,
            reset,
            all_cells,
            m.backend,
            m.recompute,
        )

    def _weights(self) -> list[Tensor]:
        m: Any = self
        # Looked up by name at every call, since an assignment, a parametrization or functional_call may have replaced
        # a Parameter. First in _parameters: nn.Module's attribute lookup takes ten times as long.
        own = m._parameters
        return [
            getattr(m, name) if (weight := own.get(name)) is None else weight
            for name in m._flat_weights_names
        ]


class _FastStep:
    """The forward of the fast cells, over the attributes of nn.RNNCellBase."""

    backend: str = "auto"
    """The backend for this cell: "auto" or a name in ``cnnlstm_fast.BACKENDS``."""

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """As nn.LSTMCell's: input (B, I) and hx, a pair (h, c) of (B, H), or all of them without B; returns the next
        (h, c)."""
        m: Any = self
        if not torch.compiler.is_compiling() and (known := run_known(self, input, hx)) is not None:
            return known
        if (tracer := tracer_of(input)) is not None:
            weights = dict(zip(_CELL_WEIGHTS, self._weights(), strict=False))  # perhaps without biases
            return run_as_pytorch(m, nn.LSTMCell, tracer, input, hx, weights)
        return cell.run(m, input, hx, self._weights())

    def key(self, input: Tensor, hx: States | None = None) -> CallKey:
        """What the backend of ``forward`` on these arguments depends on."""
        m: Any = self
        return cell.key(input, hx, self._weights(), m.hidden_size, m.backend)

    def _weights(self) -> list[Tensor]:
        m: Any = self
        own = m._parameters  # see _FastForward._weights
        return [
            getattr(m, name) if (weight := own.get(name)) is None else weight
            for name in (_CELL_WEIGHTS if m.bias else _CELL_WEIGHTS[:2])
        ]


_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

PLAIN_CLASSES = (nn.LSTM, nn.LSTMCell)
"""The classes that have a fast one."""


def fast_class(cls: type) -> type:
    """The fast class of nn.LSTM, nn.LSTMCell or one of their subclasses; any other class is returned unchanged."""
    if cls is nn.LSTM:
        return LSTM
    if cls is nn.LSTMCell:
        return LSTMCell
    if issubclass(cls, PLAIN_CLASSES) and not issubclass(cls, FastClass):
        return _fast_subclass(cls)
    return cls


class LSTM(FastClass, _FastForward, nn.RNNBase):
    """Drop-in for torch.nn.LSTM: same arguments, parameters, names, shapes and results.

    Beyond nn.LSTM its forward takes ``lengths``, ``reset`` and ``all_cells``, and empty sequences.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in torch.nn.LSTM.
        backend: "auto" chooses the fastest one that supports the call; a name in ``cnnlstm_fast.BACKENDS`` selects
            that one.
        recompute: less memory for more time in training, see ``functional.lstm``.
    """

    original_class = nn.LSTM
    fast_class_of = staticmethod(fast_class)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args: Any, backend: str = "auto", recompute: bool = False, **kwargs: Any) -> None:
        nn.RNNBase.__init__(self, "LSTM", *args, **kwargs)
        if backend != "auto":
            self.backend = backend
        if recompute:
            self.recompute = recompute


class LSTMCell(FastClass, _FastStep, nn.LSTMCell):
    """Drop-in for torch.nn.LSTMCell: same arguments, parameters, names, shapes and results. Dynamo traces an
    nn.LSTMCell, unlike an nn.LSTM, so that it is a subclass.

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.LSTMCell.
        backend: "auto" chooses the fastest one that supports the call; a name in ``cnnlstm_fast.BACKENDS`` selects
            that one.
    """

    original_class = nn.LSTMCell
    fast_class_of = staticmethod(fast_class)

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        nn.LSTMCell.__init__(self, *args, **kwargs)
        if backend != "auto":
            self.backend = backend


class _FastParent(_FastForward, nn.LSTM):
    """Replaces nn.LSTM as the parent of a user's subclass, so that its ``super().forward`` calls the fast one."""


class _FastCellParent(_FastStep, nn.LSTMCell):
    """The same for nn.LSTMCell."""


def _fast_subclass(cls: type) -> type:
    subclasses: list[type] = cls.__subclasses__()
    for known in subclasses:
        if known.__dict__.get("original_class") is cls:
            return known
    # The original class is the first base: Python changes an object's class only between classes of the same layout,
    # which is that of the first base. What must override it is therefore in the class body.
    body: dict[str, Any] = {
        "__class__": FastClass.__dict__["__class__"],
        "__reduce_ex__": FastClass.__reduce_ex__,
        "original_class": cls,
        "fast_class_of": staticmethod(fast_class),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if hasattr(cls, "__deepcopy__"):
        # that of parametrizations creates an object of the reported class
        def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
            copied = cls.__deepcopy__(self, memo)
            swap_class(copied, fast_class(cls))
            return copied

        body["__deepcopy__"] = deepcopy
    parent = _FastParent if issubclass(cls, nn.LSTM) else _FastCellParent
    return types.new_class(cls.__name__, (cls, parent, FastClass), exec_body=lambda space: space.update(body))
