"""LSTM, the drop-in layer, and its twins for subclasses of nn.LSTM. No maths here: ``functional.lstm`` does it."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from ._identity import StandIn, set_real_class

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
        """As nn.LSTM's; ``lengths``, ``reset``, ``all_cells`` and the results: see ``functional.lstm``."""
        return functional.run(self.call(input, hx, lengths=lengths, reset=reset, all_cells=all_cells))

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
        # By name at every call: whatever replaced a Parameter (an assignment, a parametrization, functional_call)
        # is what counts. nn.Module finds its parameters only after everything else, which takes ten times as long.
        own = m._parameters
        weights = [
            getattr(m, name) if (weight := own.get(name)) is None else weight
            for name in m._flat_weights_names
        ]
        return functional.canonicalise(
            input,
            hx,
            weights,
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


def fast_twin(cls: type) -> type:
    """The fast class that stands in for nn.LSTM or one of its subclasses; any other class stays itself."""
    if cls is nn.LSTM:
        return LSTM
    if issubclass(cls, nn.LSTM) and not issubclass(cls, StandIn):
        return _subclass_twin(cls)
    return cls


class LSTM(StandIn, _FastForward, nn.RNNBase):
    """Drop-in for torch.nn.LSTM: same arguments, parameters, names, shapes and results.

    Beyond nn.LSTM its forward takes ``lengths``, ``reset`` and ``all_cells``, and empty sequences.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in torch.nn.LSTM.
        backend: "auto" chooses the fastest one that can do the job; a name in ``cnnlstm_fast.BACKENDS`` insists.
        recompute: less memory for more time in training, see ``functional.lstm``.
    """

    stands_for = nn.LSTM
    twin_of = staticmethod(fast_twin)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args: Any, backend: str = "auto", recompute: bool = False, **kwargs: Any) -> None:
        nn.RNNBase.__init__(self, "LSTM", *args, **kwargs)
        if backend != "auto":
            self.backend = backend
        if recompute:
            self.recompute = recompute


class _FastParent(_FastForward, nn.LSTM):
    """Takes nn.LSTM's place as the parent of a user's subclass, so that its ``super().forward`` ends here."""


def _subclass_twin(cls: type) -> type:
    subclasses: list[type] = cls.__subclasses__()
    for known in subclasses:
        if known.__dict__.get("stands_for") is cls:
            return known
    # The class itself comes first among the bases: Python changes an object's class only between classes of one
    # layout, which is that of the first base. What must override the class's own therefore stands in the body.
    body: dict[str, Any] = {
        "__class__": StandIn.__dict__["__class__"],
        "__reduce_ex__": StandIn.__reduce_ex__,
        "stands_for": cls,
        "twin_of": staticmethod(fast_twin),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if hasattr(cls, "__deepcopy__"):
        # parametrizations bring one, which builds an object of the reported class
        def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
            copied = cls.__deepcopy__(self, memo)
            set_real_class(copied, fast_twin(cls))
            return copied

        body["__deepcopy__"] = deepcopy
    return types.new_class(
        cls.__name__, (cls, _FastParent, StandIn), exec_body=lambda space: space.update(body)
    )
