"""What several test files share: cases with their data, and the comparison by the contract.

Every run takes a padded leaf x and gives padded outputs, packed ones too, so that all results compare directly.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cnnlstm_fast import BACKENDS
from cnnlstm_fast.contract import Result, compare
from cnnlstm_fast.recurrent import functional, reference
from cnnlstm_fast.recurrent.canonical import LSTMSpec, validate

SEED = int(os.environ.get("CNNLSTM_TEST_SEED") or random.SystemRandom().randrange(1 << 31))
EXACT = [name for name, backend in BACKENDS.items() if not backend.approximate]
INTERPRETED = () if torch.cuda.is_available() else ("triton", "cuda")
"""Backends whose GPU kernels are interpreted or emulated here, a step of them in milliseconds."""
INTERPRETED_T = 7
"""T is a loop count of theirs, and what depends on it (the chunks of gate inputs) has tests of its own."""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Case(NamedTuple):
    """One call. ``kind``: padded, packed, lengths or reset (or both: lengths+reset). ``layout``: of the input."""

    T: int = 7
    B: int = 3
    I: int = 5
    H: int = 4
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    proj: int = 0
    kind: str = "padded"
    states: bool = True
    cells: bool = False
    layout: str = "contiguous"
    scale: float | None = None

    def __str__(self) -> str:
        defaults = Case()._asdict()
        shape = f"T{self.T}B{self.B}I{self.I}H{self.H}"
        rest = [f"{k}={v}" for k, v in list(self._asdict().items())[4:] if v != defaults[k]]
        return "-".join([shape, *rest])

    @property
    def options(self) -> dict[str, Any]:
        return dict(
            num_layers=self.layers, bias=self.bias, bidirectional=self.bidirectional, proj_size=self.proj
        )

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        k = self.layers * (2 if self.bidirectional else 1)
        return (k, self.B, self.proj or self.H), (k, self.B, self.H)


@dataclass(frozen=True)
class Data:
    """The tensors of a case; ``leaves`` are x in its storage's shape, the states (if given) and the weights."""

    case: Case
    leaves: list[Tensor]
    lengths: Tensor | None
    reset: Tensor | None
    cotangents: list[Tensor] = field(default_factory=list)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Data:
        def move(t: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
            return None if t is None else t.to(device, dtype, copy=True)

        return replace(
            self,
            leaves=[t.detach().to(device, dtype, copy=True) for t in self.leaves],
            lengths=move(self.lengths),
            reset=move(self.reset),
            cotangents=[t.to(device, dtype) for t in self.cotangents],
        )

    @property
    def names(self) -> list[str]:
        states = ["h0", "c0"] if self.case.states else []
        return ["x", *states, *[f"weight {k}" for k in range(len(self.leaves) - 1 - len(states))]]

    def view(self, leaves: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor] | None, list[Tensor]]:
        """x (T, B, I), hx and weights out of the leaves."""
        x, rest = as_input(leaves[0], self.case.layout), leaves[1:]
        return (x, (rest[0], rest[1]), rest[2:]) if self.case.states else (x, None, rest)


def as_input(stored: Tensor, layout: str) -> Tensor:
    """The strided view (T, B, I) that real models hand over."""
    if layout == "contiguous":
        return stored
    if layout == "nchw":  # (B, C, 1, W): strides (1, C*W, W)
        return stored.squeeze(2).permute(2, 0, 1)
    if layout == "batch_first":  # (B, T, I)
        return stored.transpose(0, 1)
    if layout == "expanded":  # (T, 1, I), stride 0 over the batch
        return stored
    if layout == "steps expanded":  # (1, B, I), stride 0 over time
        return stored
    if layout == "slice":  # every second feature of (T, B, 2I)
        return stored[..., ::2]
    if layout == "steps":  # every second step of (2T, B, I)
        return stored[::2]
    if layout == "sequences":  # every second sequence of (T, 2B, I)
        return stored[:, ::2]
    if layout == "gap":  # the middle of rows that are wider by 3
        return stored[..., 1:-2]
    raise AssertionError(layout)


def stored_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """By layout."""
    T, B, I = case.T, case.B, case.I
    return {
        "contiguous": (T, B, I),
        "nchw": (B, I, 1, T),
        "batch_first": (B, T, I),
        "expanded": (T, 1, I),
        "steps expanded": (1, B, I),
        "slice": (T, B, 2 * I),
        "steps": (2 * T, B, I),
        "sequences": (T, 2 * B, I),
        "gap": (T, B, I + 3),
    }


def make(case: Case, dtype: torch.dtype = torch.float64, seed: int | None = None) -> Data:
    """Fresh data in float64 that ``dtype`` represents exactly.

    Weights are drawn as nn.LSTM draws them, but smaller where many inputs meet a small state: its gates would
    all be 0 or 1, where the gradients' errors are those of a few unlucky numbers (1 - y * y at y = 1).
    """
    seed = SEED if seed is None else seed
    print(f"CNNLSTM_TEST_SEED={seed} {case}")
    return draw_data(case, dtype, seed)


def draw_data(case: Case, dtype: torch.dtype, seed: int) -> Data:
    g = torch.Generator().manual_seed(seed)

    def rounded(t: Tensor) -> Tensor:
        return t.to(dtype).double()

    def normal(*shape: int) -> Tensor:
        return rounded(torch.randn(shape, generator=g, dtype=torch.float64))

    layer = nn.LSTM(
        case.I, case.H, case.layers, case.bias, bidirectional=case.bidirectional, proj_size=case.proj
    )
    scale = case.scale
    if scale is None:
        scale = min(case.H**-0.5, (48 / max(case.I, 1)) ** 0.5)  # gates of a deviation of 4 at most
    weights = [
        rounded((torch.rand(p.shape, generator=g, dtype=torch.float64) * 2 - 1) * scale)
        for p in layer._flat_weights
    ]
    states = [normal(*shape) for shape in case.state_shapes] if case.states else []
    lengths = reset = None
    if case.kind == "packed":
        lengths = torch.randint(1, case.T + 1, (case.B,), generator=g)
        lengths[0] = case.T
        lengths = lengths[torch.randperm(case.B, generator=g)]
    if "lengths" in case.kind:
        lengths = torch.randint(0, case.T + 1, (case.B,), generator=g)
        lengths[-1:] = 0
        lengths[:1] = case.T
    if "reset" in case.kind:
        reset = torch.rand((case.T, case.B), generator=g) < 0.3
    P, D = case.proj or case.H, 2 if case.bidirectional else 1
    shapes = [(case.T, case.B, D * P), *case.state_shapes]
    if case.cells:
        shapes.append((case.layers * D, case.T, case.B, case.H))
    leaves = [normal(*stored_shapes(case)[case.layout]), *states, *weights]
    return Data(case, leaves, lengths, reset, [normal(*shape) for shape in shapes])


Run = Callable[[Data, list[Tensor]], tuple[Tensor, ...]]
"""Gives output (T, B, D*P), h_n, c_n, and cells (L*D, T, B, H) where the case asks for them."""


def oracle(data: Data, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """``reference.lstm``, in the leaves' dtype; packed input as padded input with lengths."""
    x, hx, weights = data.view(leaves)
    x = x.expand(data.case.T, data.case.B, -1)
    if hx is None:
        hx = tuple(x.new_zeros(shape) for shape in data.case.state_shapes)
    found = reference.lstm(
        x, *hx, weights, lengths=data.lengths, reset=data.reset, bidirectional=data.case.bidirectional
    )
    return found if data.case.cells else found[:3]


def arguments(data: Data, leaves: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call of ``functional.lstm`` for this data."""
    case = data.case
    x, hx, weights = data.view(leaves)
    x = x.expand(case.T, case.B, -1)
    kwargs = dict(case.options, all_cells=case.cells, reset=data.reset)
    if case.kind == "packed":
        x = pack_padded_sequence(x, data.lengths.cpu(), enforce_sorted=False)
    else:
        kwargs["lengths"] = data.lengths
    return (x, hx, weights), kwargs


def padded(rows: Tensor, like: PackedSequence, T: int) -> Tensor:
    return pad_packed_sequence(PackedSequence(rows, *like[1:]), total_length=T)[0]


def fast(backend: str, **extra: Any) -> Run:
    """``functional.lstm`` with the named backend."""

    def run(data: Data, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        args, kwargs = arguments(data, leaves)
        output, states, *cells = functional.lstm(*args, **kwargs, **extra, backend=backend)
        if isinstance(output, PackedSequence):
            cells = [torch.stack([padded(rows, output, data.case.T) for rows in c]) for c in cells]
            output = padded(output.data, output, data.case.T)
        return (output, *states, *cells)

    return run


def pytorch(data: Data, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """nn.LSTM's own kernel or, where it cannot do the job, the reference in the same dtype."""
    case = data.case
    if case.kind not in ("padded", "packed") or case.cells or 0 in (case.T, case.B):
        return oracle(data, leaves)
    (x, hx, weights), _ = arguments(data, leaves)
    if hx is None:
        hx = tuple(leaves[0].new_zeros(shape) for shape in case.state_shapes)
    flags = (case.bias, case.layers, 0.0, True, case.bidirectional)
    if isinstance(x, PackedSequence):
        order = x.sorted_indices
        hx = tuple(s.index_select(1, order) for s in hx)
        rows, *states = torch.lstm(x.data, x.batch_sizes, hx, weights, *flags)
        return (padded(rows, x, case.T), *[s.index_select(1, x.unsorted_indices) for s in states])
    return torch.lstm(x, hx, weights, *flags, False)


def results(run: Run, data: Data, backward: bool = True) -> dict[str, Tensor]:
    """Outputs and the gradients of all leaves by name."""
    leaves = [t.detach().requires_grad_(backward) for t in data.leaves]
    outs = run(data, leaves)
    found = dict(zip(("output", "h_n", "c_n", "cells"), outs, strict=False))
    if backward:
        pairs = [(o, c) for o, c in zip(outs, data.cotangents, strict=True) if o.requires_grad]
        grads = torch.autograd.grad([p[0] for p in pairs], leaves, [p[1] for p in pairs], allow_unused=True)
        found |= {
            f"gradient of {name}": torch.zeros_like(leaf) if g is None else g
            for name, leaf, g in zip(data.names, leaves, grads, strict=True)
        }
    return {name: t.detach() for name, t in found.items()}


def check(
    draw: Callable[[int], tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]],
    dtype: torch.dtype,
    draws: int = 1,
) -> None:
    """Every result lies within the contract.

    Args:
        draw: gives what the backend found in the k-th draw, PyTorch's own results, and the exact ones.
    """

    def named(k: int) -> Iterator[Result]:
        got, eager, exact = draw(k)
        assert got.keys() == eager.keys() == exact.keys()
        assert all(t.dtype == dtype for t in got.values())
        for name in exact:
            yield Result(name, dtype, got[name], eager[name], exact[name])

    rows = compare(named, draws)
    failed = [f"{r.what}: error {r.fast:.2e}, limit {r.limit:.2e}" for r in rows if not r.ok]
    assert not failed, "; ".join(failed)


def check_case(
    case: Case,
    backend: str,
    dtype: torch.dtype,
    device: str = "cpu",
    backward: bool = True,
    part: Callable[[Run], Run] = lambda run: run,
) -> None:
    """The backend against the float64 reference, beside PyTorch's own error. Products of float32 are exact.

    Args:
        backward: compare the gradients, too.
        part: makes a run that gives a part of the results alone.
    """
    interpreted = backend in INTERPRETED and device == "cpu"
    if interpreted:
        case = case._replace(T=min(case.T, INTERPRETED_T))

    def draw(k: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        data = make(case, dtype, SEED + k)
        there = data.to(dtype, device)
        require(backend, there)
        with torch.set_grad_enabled(backward), float32_products("ieee"):
            got = results(part(fast(backend)), there, backward)
            with one_thread():  # many tiny operations, which threads only hold up
                eager = results(part(pytorch), there, backward)
                return got, eager, results(part(oracle), data.to(torch.float64, device), backward)

    size = case.T * case.B * case.H
    # slow, and a draw that fails asks for more by itself
    check(draw, dtype, 1 if interpreted or not size else min(8, 1 + 500 // size))


def check_tf32(case: Case, backend: str, device: str = "cpu") -> None:
    """The same in float32 with products of TF32, which keeps of a factor as many bits as float16."""

    def draw(k: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        data = make(case, torch.float32, SEED + k)
        there = data.to(torch.float32, device)
        require(backend, there)
        with float32_products("tf32"):
            got = results(fast(backend), there)
        eager = results(pytorch, data.to(torch.float16, device))
        return got, eager, results(oracle, data.to(torch.float64, device))

    check(draw, torch.float32)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Of LSTMs on a GPU: ieee, or tf32, which is PyTorch's default."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


def spec_of(*args: Any, **kwargs: Any) -> LSTMSpec:
    """The spec of a call of ``functional.lstm``."""
    defaults = dict(
        num_layers=1,
        bias=True,
        bidirectional=False,
        proj_size=0,
        batch_first=False,
        dropout=0.0,
        lengths=None,
        reset=None,
        all_cells=False,
        backend="auto",
        recompute=False,
    )
    return validate(functional.canonicalise(*args, **(defaults | kwargs)).key)


def require(backend: str, data: Data) -> None:
    """Skips the test where the backend itself says that it cannot take the call."""
    args, kwargs = arguments(data, [t.detach().requires_grad_() for t in data.leaves])
    require_spec(backend, spec_of(*args, **kwargs))


def require_spec(backend: str, spec: LSTMSpec) -> None:
    reason = BACKENDS[backend].supports(spec)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def eager_copy(layer: nn.Module) -> nn.LSTM:
    """A plain nn.LSTM with the same weights."""
    p = next(layer.parameters())
    plain = nn.LSTM(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        layer.bias,
        layer.batch_first,
        layer.dropout,
        layer.bidirectional,
        layer.proj_size,
        p.device,
        p.dtype,
    )
    plain.load_state_dict(layer.state_dict())
    return plain.train(layer.training)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    return threads(1)


@contextmanager
def nan_memory() -> Iterator[None]:
    """Every uninitialised tensor comes filled with NaN."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]


NO_BF16 = not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def require_autocast() -> None:
    """Skips where PyTorch's own nn.LSTM, which tests compare with, fails under autocast."""
    if NO_BF16:
        pytest.skip("PyTorch's nn.LSTM does not run under autocast on this CPU, which has no bfloat16")
