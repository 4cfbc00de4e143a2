"""lstm(): canonical layout -> backend selection -> one operator -> the caller's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _native
from .canonical import (
    CallKey,
    LSTMSpec,
    check_hx,
    check_length_values,
    check_rank,
    check_rows,
    check_tensor,
    tensor_key,
)
from .dispatch import Plan, cached_plan, plan
from .ops import EagerLSTM

States = tuple[Tensor, Tensor]

# evaluated at import: the call breaks the graph in PyTorch 2.11
_AUTOCAST_DEVICES = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(kind)
)


def lstm(
    input: Tensor | PackedSequence,
    hx: States | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    proj_size: int = 0,
    batch_first: bool = False,
    dropout: float = 0.0,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    all_cells: bool = False,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple[Any, ...]:
    """Runs a stack of LSTM layers.

    T steps, B sequences, I input_size, H hidden_size, P = proj_size or H, L num_layers, D = 2 if bidirectional
    else 1, N rows of a packed sequence. Formulas: ``cnnlstm_fast.recurrent.reference``.

    Args:
        input: (T, B, I), with ``batch_first`` (B, T, I), one sequence (T, I), or a PackedSequence; float32,
            float64, bfloat16 or float16, any strides.
        hx: the states h0 (L*D, B, P) and c0 (L*D, B, H), without B for one sequence; None for zeros.
        weights: flat list in nn.LSTM's order, see ``reference.lstm``.
        dropout: probability of the dropout between layers, drawn from torch's generator; give 0 outside training.
        lengths: int64 (B,), values 0..T in any order: steps beyond a sequence's length do not change its state
            and output zero.
        reset: bool (T, B), with ``batch_first`` (B, T): where true, the state before the step is zeroed, in each
            direction in its own order of time.
        all_cells: also return the cell state of every step.
        backend: "auto" or a name in ``cnnlstm_fast.BACKENDS``.
        recompute: save only the arguments (and the dropout mask) for the backward pass, which then runs the
            forward pass again: the same gradients for less memory and more time. Otherwise the ``cpu`` backend
            saves 5*H numbers per step, sequence, layer and direction, and the inner layers' outputs. With
            recompute they exist only during the backward pass of this call.

    Returns:
        output: (T, B, D*P), laid out like the input, or a PackedSequence.
        (h_n, c_n): like h0 and c0.
        cells, with ``all_cells`` only: (L*D, T, B, H); (L*D, B, T, H) with ``batch_first``, (L*D, T, H) for one
            sequence, (L*D, N, H) for packed input.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the message names it.
    """
    call = canonicalise(
        input,
        hx,
        weights,
        num_layers,
        bias,
        bidirectional,
        proj_size,
        batch_first,
        dropout,
        lengths,
        reset,
        all_cells,
        backend,
        recompute,
    )
    return run(call, plan_of(call))


class Layout(NamedTuple):
    """The layout of the caller's tensors, which is restored in the results."""

    packed: bool
    batched: bool
    batch_first: bool
    order: Tensor | None = None  # PackedSequence.sorted_indices
    restore: Tensor | None = None  # PackedSequence.unsorted_indices


_TIME_FIRST, _BATCH_FIRST = Layout(False, True, False), Layout(False, True, True)
_UNBATCHED = Layout(False, False, False)


class Call(NamedTuple):
    """A call in the operator's layout, (T, B, I) or (N, I), with its key; not validated yet."""

    key: CallKey
    x: Tensor
    hx: States | None
    weights: list[Tensor]
    batch_sizes: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None
    layout: Layout


def canonicalise(
    input: Tensor | PackedSequence,
    hx: States | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    proj_size: int,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
    reset: Tensor | None,
    all_cells: bool,
    backend: str,
    recompute: bool,
) -> Call:
    """Converts the arguments of ``lstm`` to the operator's layout: views, and copies only under autocast."""
    batch_sizes = sizes = None
    check_tensor("lengths", lengths)
    check_tensor("reset", reset)
    for weight in weights:
        check_tensor("weights", weight)
    if isinstance(input, PackedSequence):
        x, batch_sizes, order, restore = input
        layout = Layout(True, True, False, order, restore)
        check_rows(x)
        sizes = (batch_sizes.size(0), int(batch_sizes[0]))
        if hx is not None:
            check_hx(hx, 3, True)
            hx = (_permute(hx[0], order), _permute(hx[1], order))
    else:
        check_rank(input)
        batched = input.dim() == 3
        layout = _UNBATCHED if not batched else _BATCH_FIRST if batch_first else _TIME_FIRST
        x = input if batched else input.unsqueeze(1)
        if hx is not None:
            check_hx(hx, 3 if batched else 2, batched)
            hx = (hx[0], hx[1]) if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if layout.batch_first:
            x = x.transpose(0, 1)
            reset = reset.transpose(0, 1) if reset is not None and reset.dim() == 2 else reset
        elif not batched:
            lengths = None if lengths is None else lengths.reshape(-1)
            reset = None if reset is None else reset.reshape(-1, 1)
    x, hx, weights = _autocast(x, hx, list(weights))
    tracing = torch.compiler.is_compiling()
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *(hx or ()), *weights))
    key = CallKey(
        tensor_key(x),
        None if hx is None else (tensor_key(hx[0]), tensor_key(hx[1])),
        tuple([tensor_key(w) for w in weights]),
        sizes,
        None if lengths is None else tensor_key(lengths),
        None if reset is None else tensor_key(reset),
        num_layers,
        bidirectional,
        bias,
        proj_size,
        dropout,
        all_cells,
        grad,
        tracing,
        backend,
        recompute,
    )
    return Call(key, x, hx, weights, batch_sizes, lengths, reset, layout)


def plan_of(call: Call) -> Plan:
    """Checks the call and chooses its backend."""
    return plan(call.key) if call.key.tracing else cached_plan(call.key)


def run(call: Call, made: Plan) -> tuple[Any, ...]:
    """Runs the call by its plan, and restores the caller's layout."""
    key, layout = call.key, call.layout
    if call.lengths is not None:
        check_length_values(call.lengths, call.x.size(0))
    output: Any
    output, h_n, c_n, cells = _run_backend(made, call)
    if layout.packed:
        output = PackedSequence(output, call.batch_sizes, layout.order, layout.restore)
        h_n, c_n = _permute(h_n, layout.restore), _permute(c_n, layout.restore)
    elif not layout.batched:
        output, h_n, c_n = output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1)
        cells = cells.squeeze(2) if key.all_cells else cells
    elif layout.batch_first:
        output = output.transpose(0, 1)
        cells = cells.transpose(1, 2) if key.all_cells else cells
    return (output, (h_n, c_n), cells) if key.all_cells else (output, (h_n, c_n))


def _run_backend(made: Plan, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns output, h_n, c_n, cells in the operator's layout."""
    spec, backend = made.spec, made.choice.backend
    x, hx, dropout = call.x, call.hx, call.key.dropout
    P = spec.proj_size or spec.hidden_size
    if hx is None:
        B = x.size(1) if call.key.batch_sizes is None else call.key.batch_sizes[1]
        states = spec.num_layers * spec.directions
        hx = (x.new_zeros((states, B, P)), x.new_zeros((states, B, spec.hidden_size)))
    recompute = spec.grad and call.key.recompute
    eager_code = backend.differentiable and not spec.tracing and not recompute
    own_dropout = spec.dropout and eager_code and backend.own_dropout
    mask = None
    if spec.dropout and not own_dropout:
        mask = draw_dropout(dropout, (spec.num_layers - 1, *x.shape[:-1], spec.directions * P), x)
    tensors = (x, *hx, call.weights, call.batch_sizes, call.lengths, call.reset, mask)
    flags = (spec.bidirectional, spec.grad and not recompute, spec.all_cells)
    if eager_code:
        assert backend.forward is not None
        extra = {"dropout": dropout} if own_dropout else {}
        return backend.forward(*tensors, *flags, **extra)[:4]
    return _call_operator(spec, backend.name, tensors, flags)


def _call_operator(
    spec: LSTMSpec, backend: str, tensors: tuple[Any, ...], flags: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operator = torch.ops.cnnlstm_fast.lstm.default
    if spec.tracing:
        return operator(*tensors, *flags, backend)[:4]
    if spec.grad:
        input, h0, c0, weights, *optional = tensors
        return EagerLSTM.apply(*optional, (*flags, backend), input, h0, c0, *weights)[:4]
    # Bypasses the autograd formula, which is Python code and takes a noticeable part of a short call.
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*tensors, *flags, backend)[:4]


def draw_dropout(p: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Scaled dropout masks, drawn per layer from torch's generator in the same way as by nn.LSTM on a CPU, so that the
    same seed gives the same result there."""
    if p == 1.0:
        return like.new_zeros(shape)
    mask = like.new_empty(shape)
    for layer in mask:
        layer.bernoulli_(1.0 - p).div_(1.0 - p)
    return mask


def _permute(state: Tensor, order: Tensor | None) -> Tensor:
    return state if order is None else state.index_select(1, order)


def _autocast(
    x: Tensor, hx: States | None, weights: list[Tensor]
) -> tuple[Tensor, States | None, list[Tensor]]:
    """Under autocast everything but float64 is cast to its dtype, as in PyTorch's own LSTM."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return x, hx, weights

    def cast(t: Tensor) -> Tensor:
        return t.to(autocast_to(dtype, t.dtype))

    hx = None if hx is None else (cast(hx[0]), cast(hx[1]))
    if _native.available and not torch.compiler.is_compiling() and _without_gradient(weights):
        # kept from call to call: a copy that is new in every call would also be packed anew
        return cast(x), hx, torch.ops.cnnlstm_fast.cast_weights(weights, dtype)
    return cast(x), hx, [cast(w) for w in weights]


def _without_gradient(weights: list[Tensor]) -> bool:
    return all([w.dtype != torch.float64 for w in weights]) and not (
        torch.is_grad_enabled() and any([w.requires_grad for w in weights])
    )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast for the tensor's device, None where it is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = x.device.type
    if kind not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast_to(autocast: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """The dtype to which a tensor of ``dtype`` is cast."""
    return autocast if dtype.is_floating_point and dtype != torch.float64 else dtype
