"""One step of an nn.LSTMCell: the same validation, choice of the backend and operator as a call of an LSTM, with T = 1.

A small step takes 10 us in the operator, so what comes before it counts: all that validation and choice depend on is
read once into one flat tuple, under which their result is cached.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .canonical import CallKey, TensorKey, check_hx, check_step
from .dispatch import Plan, cached, plan
from .functional import States, autocast_dtype, autocast_to
from .known_calls import admit_known
from .ops import run_step
from .transforms import transformed


def run(cell: Any, input: Tensor, hx: States | None, weights: list[Tensor]) -> States:
    """Checks a call of a fast LSTMCell, chooses its backend and runs it.

    Args:
        cell: the layer, of which ``hidden_size`` and ``backend`` are read.
        input: (B, I) or (I,).
        hx: h and c, each (B, H) or (H,); None for zeros.
        weights: w_ih (4H, I), w_hh (4H, H) and, where there are biases, b_ih, b_hh (4H).

    Returns:
        The next h and c, like hx.
    """
    x, h, c = _batched(input, hx, cell.hidden_size)
    facts = _facts(x, h, c, weights, cell.backend)
    tracing = torch.compiler.is_compiling()
    spec, choice = (_plan if tracing else _cached_plan)(*facts)
    if not tracing:
        admit_known(cell, input, hx, choice.backend.name)
    if choice.backend.step is not None and (tracing or not transformed()):
        h, c = choice.backend.step(x, (h, c), *weights)
    elif spec.autocast:
        kept = torch.promote_types(spec.dtype, c.dtype) if spec.device == "cpu" else spec.dtype
        x, h, c, *weights = (t.to(spec.dtype) for t in (x, h, c, *weights))
        h, c = run_step(x, h, c, weights, spec.grad, spec.tracing, choice.backend.name)
        h, c = h.to(kept), c.to(kept)
    else:
        h, c = run_step(x, h, c, weights, spec.grad, spec.tracing, choice.backend.name)
    return (h, c) if x is input else (h.squeeze(0), c.squeeze(0))


def key(input: Tensor, hx: States | None, weights: list[Tensor], hidden_size: int, backend: str) -> CallKey:
    """What ``run`` would choose a backend by."""
    return _key(*_facts(*_batched(input, hx, hidden_size), weights, backend))


def _batched(input: Tensor, hx: States | None, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, I), h and c (B, H): the input itself where it is batched."""
    check_step(input)
    if hx is None:
        zeros = input.new_zeros((*input.shape[:-1], hidden_size))
        hx = zeros, zeros
    batched = input.dim() == 2
    check_hx(hx, 2 if batched else 1, batched)
    h, c = hx
    return (input, h, c) if batched else (input.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0))


def _facts(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], backend: str) -> tuple[Any, ...]:
    """The arguments of ``_key``. Written out, since a loop takes twice as long."""
    w_ih, w_hh, *biases = weights
    tracing = torch.compiler.is_compiling()
    # fmt: off
    facts = (
        backend,
        torch.is_grad_enabled() and (
            (not tracing and transformed()) or any([t.requires_grad for t in (x, h, c, *weights)])
        ),
        tracing,
        autocast_dtype(x),
        x.shape, x.dtype, x.device, h.shape, h.dtype, h.device, c.shape, c.dtype, c.device,
        w_ih.shape, w_ih.dtype, w_ih.device, w_hh.shape, w_hh.dtype, w_hh.device,
    )
    if not biases:
        return facts
    b_ih, b_hh = biases
    return facts + (b_ih.shape, b_ih.dtype, b_ih.device, b_hh.shape, b_hh.dtype, b_hh.device)  # noqa: RUF005
    # fmt: on


def _key(backend: str, grad: bool, tracing: bool, autocast: torch.dtype | None, *of_tensors: Any) -> CallKey:
    """``of_tensors``: the fields of the ``TensorKey`` of x, h, c and every weight."""
    fields = (of_tensors[k : k + 3] for k in range(0, len(of_tensors), 3))
    x, h, c, *weights = (
        TensorKey(shape, autocast_to(autocast, dtype) if autocast else dtype, device)
        for shape, dtype, device in fields
    )
    return CallKey(
        input=x,
        hx=(h, c),
        weights=tuple(weights),
        batch_sizes=None,
        lengths=None,
        reset=None,
        num_layers=1,
        bidirectional=False,
        bias=len(weights) == 4,
        proj_size=0,
        dropout=0.0,
        all_cells=False,
        grad=grad,
        tracing=tracing,
        backend=backend,
        recompute=False,
        cell=True,
        autocast=autocast is not None,
    )


def _plan(*facts: Any) -> Plan:
    return plan(_key(*facts))


_cached_plan = cached(_plan)
