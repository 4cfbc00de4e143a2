"""The launches: one layer's recurrence, both directions, forward and backward.

T steps, B sequences, H hidden_size, D directions, N rows (T*B, or those of a packed sequence).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backward import backward_kernel
from .backward_streamed import backward_streamed_kernel
from .forward import forward_kernel
from .forward_streamed import forward_streamed_kernel
from .plan import INTERPRETER, Device, Plan, device_of, plan
from .precision import products, size
from .previous_hidden import previous_hidden_kernel
from .sequence import Chunk, Sequence
from .states import states_kernel

MOST_REGISTERS = 255
"""Of a thread. Without this limit the compiler spills registers so that two programs fit one processor."""

MOST_GATE_INPUTS = 256 << 20
"""Bytes of them that exist at once, unless one step has more. Each chunk costs a launch that reloads the weights."""


class Recurrence(NamedTuple):
    """The recurrent weights of a layer, one entry per direction."""

    w_hh: list[Tensor]  # (4H, H)
    b_ih: list[Tensor | None]  # (4H,)
    b_hh: list[Tensor | None]


class Saved(NamedTuple):
    """What a layer's forward pass fills beside its output; None where it is not asked for."""

    cells: Tensor | None  # (D, N, H)
    gates: Tensor | None  # (D, N, 4H)


def forward(
    gate_inputs: Callable[[Chunk], Tensor],
    h0: Tensor,
    c0: Tensor,
    weights: Recurrence,
    output: Tensor,
    saved: Saved,
    at: Sequence,
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence.

    Args:
        gate_inputs: gives W_ih x of a chunk's rows, (D, M, 4H) float32.
        h0, c0: (D, B, H), contiguous.
        output: (N, D*H), filled.

    Returns:
        h_n, c_n: (D, B, H).
    """
    D, B, H = h0.shape
    chosen, device = _plan(h0, H, B, D)
    # two planes that alternate: the input of a step and its result
    h_state = _aligned(h0).repeat(2, 1, 1, 1)
    c_state = c0.to(torch.float32, copy=True)
    fixed = dict(
        **_by_direction("weight_hh", list(map(_aligned, weights.w_hh))),
        **_by_direction("bias_ih", weights.b_ih),
        **_by_direction("bias_hh", weights.b_hh),
        h_state=h_state,
        c_state=c_state,
        output=output,
        cells=saved.cells,
        gates=saved.gates,
        **chosen.forward(H, size(h0.dtype)),
        num_warps=chosen.forward_warps,
        **_common(at, H, chosen, h0.dtype),
    )
    kernel = forward_streamed_kernel if chosen.algorithm == "streaming" else forward_kernel
    launch = kernel[chosen.programs(device, H, B, D)]
    for chunk in at.chunks(D, MOST_GATE_INPUTS // (16 * H * D)):
        x_gates = gate_inputs(chunk)
        for begin, end in _launches(chosen, device, chunk.begin, chunk.end):
            launch(
                **fixed,
                **_waiting(chosen, h0),
                gate_inputs=x_gates,
                **_by_direction("first_row", [here.start for here in chunk.rows], absent=0),
                M=x_gates.size(1),
                s_begin=begin,
                s_end=end,
            )
    return h_state[at.T % 2, :, :, :H], c_state.to(c0.dtype)


def backward(
    saved: Saved,
    c0: Tensor,
    weights: Recurrence,
    grad_output: Tensor | None,
    grad_cells: Tensor | None,
    grad_h: Tensor,
    grad_c: Tensor,
    at: Sequence,
) -> Tensor:
    """Runs the recurrence backwards.

    Args:
        grad_output: (N, D*H), contiguous, or None.
        grad_cells: (D, N, H), contiguous, or None.
        grad_h, grad_c: (D, B, H) float32: gradients of h_n and c_n, in which those of h0 and c0 are returned.

    Returns:
        The gradients of the gates before their activation, (D, N, 4H).
    """
    assert saved.gates is not None and saved.cells is not None
    D, B, H = c0.shape
    chosen, device = _plan(c0, H, B, D)
    found = torch.empty_like(saved.gates)
    fixed = dict(
        gates=saved.gates,
        cells=saved.cells,
        c0=c0,
        **_by_direction("weight_hh", list(map(_aligned, weights.w_hh))),
        grad_output=grad_output,
        grad_cells=grad_cells,
        grad_h=grad_h,
        grad_c=grad_c,
        gate_gradients=found,
        exchanged=found.new_zeros((2, D, B, _multiple(4 * H))) if chosen.waits else None,
        **chosen.backward(H, size(c0.dtype)),
        num_warps=chosen.backward_warps,
        **_common(at, H, chosen, c0.dtype),
    )
    kernel = backward_streamed_kernel if chosen.algorithm == "streaming" else backward_kernel
    launch = kernel[chosen.programs(device, H, B, D)]
    for begin, end in _launches(chosen, device, 0, at.T + 1):
        launch(**fixed, **_waiting(chosen, c0), n_begin=begin, n_end=end)
    return found


def previous_hidden(output: Tensor, h0: Tensor, at: Sequence) -> Tensor:
    """output (N, D*H), h0 (D, B, H) -> the hidden states that enter each step, (D, N, H)."""
    D, B, H = h0.shape
    found = output.new_empty((D, at.N, H))
    previous_hidden_kernel[at.T, -(-B // 16), D](
        output,
        h0,
        found,
        at.lengths,
        at.offsets,
        at.reset,
        at.T,
        B,
        at.N,
        H,
        MULTIPLE=math.gcd(H, 16),
        BLOCK_H=128,
        BLOCK_B=16,
    )
    return found


def states(saved: Saved) -> Tensor:
    """The hidden states of all rows, (N, D*H), zero where a sequence has ended."""
    assert saved.gates is not None and saved.cells is not None
    D, N, H = saved.cells.shape
    found = saved.cells.new_empty((N, D * H))
    states_kernel[N, D](saved.gates, saved.cells, found, N, H, BLOCK_H=128)
    return found


def _launches(chosen: Plan, device: Device, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The steps of each launch: all, unless programs run one after the other, when none may wait for a later one."""
    if chosen.algorithm == "persistent_grid" and device is INTERPRETER:
        return ((s, s + 1) for s in range(begin, end))
    return iter([(begin, end)])


def _plan(like: Tensor, H: int, B: int, D: int) -> tuple[Plan, Device]:
    device = device_of(like.device.index if like.is_cuda else None)
    return plan(device, H, B, D, size(like.dtype)), device


def _multiple(n: int) -> int:
    """n rounded up to a multiple of 16: rows that begin where wide loads can."""
    return -(-n // 16) * 16


def _aligned(t: Tensor) -> Tensor:
    """(..., H) -> (..., W), zeros behind H."""
    H = t.size(-1)
    return t if H % 16 == 0 else torch.nn.functional.pad(t, (0, _multiple(H) - H))


def _by_direction(name: str, values: list[Any], absent: Any = None) -> dict[str, Any]:
    return {name: values[0], f"{name}_reverse": values[1] if len(values) == 2 else absent}


def _common(at: Sequence, H: int, chosen: Plan, dtype: torch.dtype) -> dict[str, Any]:
    return dict(
        lengths=at.lengths,
        offsets=at.offsets,
        reset=at.reset,
        T=at.T,
        B=at.B,
        N=at.N,
        H=H,
        MULTIPLE=math.gcd(H, 16),
        BLOCK_H=chosen.block_h,
        BLOCK_B=chosen.block_b,
        PRECISION=products(dtype),
        maxnreg=MOST_REGISTERS,
    )


def _waiting(chosen: Plan, like: Tensor) -> dict[str, Any]:
    """What the programs of a launch need that wait for each other: counters, and a launch for which the
    driver guarantees that all of them run at once, or reports an error."""
    if not chosen.waits:
        return dict(arrivals=None)
    D, B, H = like.shape
    _, tiles, _ = chosen.items(H, B, D)
    counters = torch.zeros((D, tiles), dtype=torch.int32, device=like.device)
    return dict(arrivals=counters, launch_cooperative_grid=True)
