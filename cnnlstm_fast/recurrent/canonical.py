"""The arguments of a call: CallKey, its validation, and LSTMSpec, the summary by which a backend is chosen.

This is the only module that raises shape, dtype and device errors. Each is one sentence: the argument, what was
expected, what was given, how to fix it.

Dimensions: T steps, B sequences, I input_size, H hidden_size, P = proj_size or H, L num_layers, D directions,
N rows of a packed sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class LSTMSpec(NamedTuple):
    """Everything that the choice of a backend may depend on. ``T`` and ``B`` are None while a graph is being traced,
    since a choice by size would compile one graph per size."""

    device: str
    dtype: torch.dtype
    T: int | None
    B: int | None
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    bias: bool
    packed: bool
    lengths: bool
    reset: bool
    dropout: bool
    all_cells: bool
    grad: bool
    tracing: bool
    cell: bool = False
    """One step of an nn.LSTMCell, for which PyTorch's own code is ``torch.lstm_cell`` and not ``torch.lstm``."""
    autocast: bool = False
    """A cell under autocast. Its products have ``dtype``, and on a CPU its states keep their own dtype."""

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def __str__(self) -> str:
        size = "any T and B" if self.T is None else f"T={self.T} B={self.B}"
        flags = [
            name
            for name in (
                "bidirectional",
                "packed",
                "lengths",
                "reset",
                "dropout",
                "all_cells",
                "grad",
                "tracing",
                "cell",
                "autocast",
            )
            if getattr(self, name)
        ]
        projection = f" P={self.proj_size}" if self.proj_size else ""
        return " ".join(
            [
                self.device,
                str(self.dtype).removeprefix("torch."),
                size,
                f"I={self.input_size} H={self.hidden_size}{projection} L={self.num_layers}",
                *flags,
            ]
        )


class LayerWeights(NamedTuple):
    """The weights of one layer in one direction, see ``reference.lstm`` for the shapes."""

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None
    w_hr: Any = None


def split_weights(weights: Sequence[Any], num_layers: int, directions: int) -> list[list[LayerWeights]]:
    """Groups nn.LSTM's flat list by layer and direction."""
    count = len(weights) // (num_layers * directions)

    def group(k: int) -> LayerWeights:
        w = weights[k * count : (k + 1) * count]
        b_ih, b_hh = (w[2], w[3]) if count >= 4 else (None, None)
        return LayerWeights(w[0], w[1], b_ih, b_hh, w[-1] if count in (3, 5) else None)

    return [[group(layer * directions + d) for d in range(directions)] for layer in range(num_layers)]


class TensorKey(NamedTuple):
    """The properties of a tensor that are known without reading its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def tensor_key(tensor: Tensor) -> TensorKey:
    """The fields of a ``TensorKey`` as a plain tuple, which is cheaper: one is created for every tensor of every call.
    Only ``validate``, whose results are cached, needs the field names, and adds them."""
    return tensor.shape, tensor.dtype, tensor.device  # type: ignore[return-value]


class CallKey(NamedTuple):
    """Everything that validation and backend selection depend on; hashable, so that their results are cached."""

    input: TensorKey  # (T, B, I); (N, I) where batch_sizes is given; (B, I) of a cell
    hx: tuple[TensorKey, TensorKey] | None
    weights: tuple[TensorKey, ...]
    batch_sizes: tuple[int, int] | None  # T and B of a packed sequence
    lengths: TensorKey | None
    reset: TensorKey | None
    num_layers: int
    bidirectional: bool
    bias: bool
    proj_size: int
    dropout: float
    all_cells: bool
    grad: bool
    tracing: bool
    backend: str
    recompute: bool
    cell: bool = False
    autocast: bool = False  # of a cell


def validate(key: CallKey) -> LSTMSpec:
    """Checks the arguments of a call against each other.

    Raises:
        ValueError: a shape, dtype or value does not fit.
        RuntimeError: tensors are on different devices.
    """
    key = _named(key)
    x = key.input
    directions = 2 if key.bidirectional else 1
    hidden_size = _check_weights(key, directions)
    input_size = key.weights[0].shape[1]
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"input: expected a floating dtype, got {_name(x.dtype)}; convert it with input.float()."
        )
    if x.shape[-1] != input_size:
        raise ValueError(
            f"input: expected {input_size} features in its last dimension (the LSTM's input_size), got shape "
            f"{_show(x.shape)}."
        )
    if x.dtype != key.weights[0].dtype:
        raise ValueError(
            f"input: expected the weights' dtype {_name(key.weights[0].dtype)}, got {_name(x.dtype)}; convert "
            f"the input, or the model with model.to({x.dtype})."
        )
    if x.device != key.weights[0].device:
        raise RuntimeError(
            f"input: expected the weights' device {key.weights[0].device}, got {x.device}; move one of them "
            f"with .to()."
        )
    if key.cell:
        T, B = 1, x.shape[0]
    elif key.batch_sizes is None:
        T, B = x.shape[0], x.shape[1]
    else:
        T, B = key.batch_sizes
    P = key.proj_size or hidden_size
    if key.hx is not None:
        states = () if key.cell else (key.num_layers * directions,)
        leading = "(batch" if key.cell else "(num_layers*directions, batch"
        width = "hidden_size" if key.cell else "proj_size or hidden_size"
        _check_state("h0", key.hx[0], (*states, B, P), f"{leading}, {width})", x)
        _check_state("c0", key.hx[1], (*states, B, hidden_size), f"{leading}, hidden_size)", x)
    _check_lengths(key, B)
    _check_reset(key, T, B)
    if not 0.0 <= key.dropout <= 1.0:
        raise ValueError(f"dropout: expected a probability between 0 and 1, got {key.dropout}.")
    return LSTMSpec(
        device=x.device.type,
        dtype=x.dtype,
        T=None if key.tracing else T,
        B=None if key.tracing else B,
        input_size=input_size,
        hidden_size=hidden_size,
        proj_size=key.proj_size,
        num_layers=key.num_layers,
        bidirectional=key.bidirectional,
        bias=key.bias,
        packed=key.batch_sizes is not None,
        lengths=key.lengths is not None,
        reset=key.reset is not None,
        dropout=key.dropout > 0.0 and key.num_layers > 1,
        all_cells=key.all_cells,
        grad=key.grad,
        tracing=key.tracing,
        cell=key.cell,
        autocast=key.autocast,
    )


def check_rank(input: Tensor) -> None:
    """A padded input has rank 3, or 2 where it is one unbatched sequence."""
    if not isinstance(input, Tensor):
        raise TypeError(
            f"input: expected a Tensor or a PackedSequence, got {type(input).__name__}; pass one of these."
        )
    if input.dim() not in (2, 3):
        raise ValueError(
            f"input: expected rank 3, (T, B, I) or batch_first (B, T, I), or rank 2, (T, I), got rank "
            f"{input.dim()} with shape {_show(input.shape)}; reshape it."
        )


def check_step(input: Tensor) -> None:
    """The input of a cell has rank 2, or 1 where it is one unbatched step."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}; pass the input of one step.")
    if input.dim() not in (1, 2):
        raise ValueError(
            f"input: expected rank 2, (B, I), or rank 1, (I,), got rank {input.dim()} with shape "
            f"{_show(input.shape)}; a cell runs one step: pass the steps one by one, or use an LSTM."
        )


def check_rows(rows: Tensor) -> None:
    """The data of a PackedSequence has rank 2."""
    if rows.dim() != 2:
        raise ValueError(
            f"input: expected a PackedSequence with data of rank 2, (N, I), got rank {rows.dim()} with shape "
            f"{_show(rows.shape)}; flatten the features of a step into one dimension before packing."
        )


def check_tensor(name: str, value: Any) -> None:
    """The value is a tensor or None."""
    if value is not None and not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected a Tensor, got {type(value).__name__}; convert it with torch.as_tensor()."
        )


def check_hx(hx: Any, rank: int, batched: bool) -> None:
    """hx is a pair of tensors of the given rank."""
    pair = isinstance(hx, (tuple, list)) and len(hx) == 2
    if not pair or not isinstance(hx[0], Tensor) or not isinstance(hx[1], Tensor):
        raise TypeError(f"hx: expected a pair of tensors (h0, c0), got {_describe(hx)}; pass both states.")
    if hx[0].dim() == rank == hx[1].dim():
        return
    name, state = ("h0", hx[0]) if hx[0].dim() != rank else ("c0", hx[1])
    raise ValueError(
        f"{name}: expected rank {rank}, as the input is {'batched' if batched else 'unbatched'}, got rank "
        f"{state.dim()} with shape {_show(state.shape)}; add or drop its batch dimension 1."
    )


def check_length_values(lengths: Tensor, T: int) -> None:
    """Every length is in 0..T. On devices other than the CPU, and in a traced graph, the check is an assertion on the
    device, which does not synchronize."""
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        if lengths.numel():
            low, high = (int(v) for v in torch.aminmax(lengths))
            if low < 0:
                raise ValueError(f"lengths: expected values from 0 to T={T}, got {low}; lengths count steps.")
            if high > T:
                raise ValueError(
                    f"lengths: expected values from 0 to T={T}, got {high}; the input has only {T} steps."
                )
    else:
        torch._assert_async(((lengths >= 0) & (lengths <= T)).all(), "lengths: expected values from 0 to T.")


def _named(key: CallKey) -> CallKey:
    def name(fields: Any) -> Any:
        return None if fields is None else TensorKey(*fields)

    return key._replace(
        input=name(key.input),
        hx=None if key.hx is None else (name(key.hx[0]), name(key.hx[1])),
        weights=tuple(map(name, key.weights)),
        lengths=name(key.lengths),
        reset=name(key.reset),
    )


def _check_weights(key: CallKey, directions: int) -> int:
    """Checks the number of weights and the shape, dtype and device of each; returns the hidden size."""
    per_direction = 2 + 2 * key.bias + (key.proj_size > 0)
    expected = per_direction * directions * key.num_layers
    if key.num_layers < 1 or len(key.weights) != expected:
        raise ValueError(
            f"weights: expected {expected} tensors (num_layers={key.num_layers}, {directions} direction(s), "
            f"{per_direction} each with bias={key.bias}, proj_size={key.proj_size}), got {len(key.weights)}."
        )
    first = key.weights[0]
    if len(first.shape) != 2 or first.shape[0] % 4 or first.shape[0] == 0:
        raise ValueError(
            f"weights[0]: expected w_ih of shape (4*hidden_size, input_size), got {_show(first.shape)}."
        )
    H = first.shape[0] // 4
    P = key.proj_size or H
    if not 0 <= key.proj_size < H:
        raise ValueError(f"proj_size: expected 0 (none) to less than hidden_size={H}, got {key.proj_size}.")
    wanted = {"w_hh": (4 * H, P), "b_ih": (4 * H,), "b_hh": (4 * H,), "w_hr": (P, H)}
    for layer, pair in enumerate(split_weights(key.weights, key.num_layers, directions)):
        wanted["w_ih"] = (4 * H, first.shape[1] if layer == 0 else directions * P)
        for direction, w in enumerate(pair):
            for name, weight in w._asdict().items():
                if weight is None:
                    continue
                where = f"weights: {name} of layer {layer}, direction {direction}"
                if tuple(weight.shape) != wanted[name]:
                    raise ValueError(f"{where}: expected shape {wanted[name]}, got {_show(weight.shape)}.")
                if weight.dtype != first.dtype:
                    raise ValueError(
                        f"{where}: expected {_name(first.dtype)} like the first weight, got {_name(weight.dtype)}; "
                        f"convert the whole model with model.to()."
                    )
                if weight.device != first.device:
                    raise RuntimeError(
                        f"{where}: expected the first weight's device {first.device}, got {weight.device}; move "
                        f"the whole model with model.to()."
                    )
    return H


def _check_state(name: str, state: TensorKey, shape: tuple[int, ...], meaning: str, x: TensorKey) -> None:
    if tuple(state.shape) != shape:
        raise ValueError(f"{name}: expected shape {_show(shape)} {meaning}, got {_show(state.shape)}.")
    if state.dtype != x.dtype:
        raise ValueError(
            f"{name}: expected the input's dtype {_name(x.dtype)}, got {_name(state.dtype)}; convert it with "
            f"{name}.to(input.dtype)."
        )
    if state.device != x.device:
        raise RuntimeError(
            f"{name}: expected the input's device {x.device}, got {state.device}; move it with "
            f"{name}.to(input.device)."
        )


def _check_lengths(key: CallKey, B: int) -> None:
    lengths = key.lengths
    if lengths is None:
        return
    if key.batch_sizes is not None:
        raise ValueError(
            "lengths: expected None with a PackedSequence, which has its own; pass only one of them."
        )
    if tuple(lengths.shape) != (B,):
        raise ValueError(f"lengths: expected shape ({B},), one per sequence, got {_show(lengths.shape)}.")
    if lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths: expected int64, got {_name(lengths.dtype)}; convert it with lengths.long()."
        )
    if lengths.device != key.input.device:
        raise RuntimeError(
            f"lengths: expected the input's device {key.input.device}, got {lengths.device}; move it with "
            f"lengths.to(input.device)."
        )


def _check_reset(key: CallKey, T: int, B: int) -> None:
    reset = key.reset
    if reset is None:
        return
    if key.batch_sizes is not None:
        raise ValueError(
            "reset: expected None with a PackedSequence; pass a padded input with lengths instead."
        )
    if tuple(reset.shape) != (T, B):
        raise ValueError(
            f"reset: expected shape ({T}, {B}), (T, B), or (B, T) with batch_first, got "
            f"{_show(reset.shape)} as (T, B)."
        )
    if reset.dtype != torch.bool:
        raise ValueError(f"reset: expected bool, got {_name(reset.dtype)}; convert it with reset.bool().")
    if reset.device != key.input.device:
        raise RuntimeError(
            f"reset: expected the input's device {key.input.device}, got {reset.device}; move it with "
            f"reset.to(input.device)."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(shape: Sequence[int]) -> str:
    return str(tuple(shape))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one tensor of shape {_show(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(type(v).__name__ for v in value)}"
    return type(value).__name__
