"""The time below which no implementation can get a call, from the ceilings of the machine.

Both devices start from the matrix products that a call consists of. A product takes r rows through a matrix of w
numbers: 2*r*w FLOP. With N the sequences' steps in total, b_t the sequences that reach step t, P the proj_size
or H, D the directions, I_l the layer's input size (D*P above the first), and R = 4H*P + P*H numbers of recurrent
weights (without P*H where nothing is projected), every layer and direction has

- the input product of all steps: r = N, w = 4H*I_l;
- at each step t the recurrent product: r = b_t, w = R. At t = 0 there is none unless the caller hands in states;
- in training for the way back, at each of those steps: r = b_t, w = R;
- in training the gradients of the input and of W_ih: r = N, w = 4H*I_l twice;
- in training the gradient of W_hh (r = sum of those b_t, w = 4H*P) and of the projection (r = N, w = P*H).

Activations, biases, states, reading the input and writing the output are free, and so is starting anything.

**CPU.** A product takes the longer one of its FLOP at the rate of GEMM and reading its matrix once (writing it,
where it is a gradient) from the nearest level that holds it: L1 or L2 where each thread's share of the matrix fits
into that of a core, else L3, else the memory. At every level all threads read at once, at the caches as fast as
one alone. The products add up, since all of them share the machine.

Two assumptions are in it, which all implementations known to us keep: a matrix that does not fit into a level is
not kept there in part, and no product is computed in the time in which another one waits for its matrix.

**GPU.** The longer one of all FLOP at the rate of GEMM and a chain of steps that depend on each other, each of which
waits once for its turn (the first one for the kernel to start, which takes longer): T + L - 1 steps for L layers
in one direction, which can follow each other as a wavefront, and L*T in two, since a layer needs the last step of
both directions below before its first; twice that in training. What a turn costs depends on how many share the
recurrent weights: the threads of a block up to H = 128, the blocks of a cluster up to H = 640 (where there are
clusters), the whole GPU above.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..cases import Case
from .ceilings import Ceilings

BLOCK_HIDDEN, CLUSTER_HIDDEN = 128, 640
"""The largest H whose recurrent weights one block, one cluster keeps in registers and shared memory."""
_ITEM_BYTES = {"f32": 4, "tf32": 4, "bf16": 2, "amp": 2, "fp16": 2}


class Product(NamedTuple):
    """2 * rows * weights FLOP, and a matrix of so many numbers that is read or written."""

    rows: int
    weights: int


def floor(case: Case, mode: str, dtype: str, ceilings: Ceilings, device: str) -> float | None:
    """The least seconds that a call can take; the module's docstring has the formula and what it leaves out.

    Args:
        mode: "inference" or "training".
        dtype: of the products: a row's, or "tf32" where float32 numbers are multiplied as such.
        ceilings: measured on that device.
        device: "cpu" or "cuda".

    Returns:
        None for a whole model, for a call without a step, and where no rate of that dtype was measured.
    """
    lengths = sequence_lengths(case)
    rate = _gemm_rate(dtype, ceilings)
    if case.model or not rate or not lengths.any():
        return None
    work = list(products(case, mode))
    if device == "cpu":
        return sum(_cpu_seconds(product, rate, _ITEM_BYTES[dtype], ceilings) for product in work)
    flop = sum(2 * product.rows * product.weights for product in work)
    return max(flop / rate, _chain(case, mode, int(lengths.max())) * _turn(case, ceilings))


def sequence_lengths(case: Case) -> torch.Tensor:
    """(B,), sorted, as ``jobs.build`` makes them."""
    if case.lengths is None:
        return torch.full((case.B,), case.T)
    low, high = (share * case.T for share in case.lengths)
    spread = torch.linspace(low, high, case.B - case.empty).round().long()
    return torch.cat([spread.new_zeros(case.empty), spread])


def products(case: Case, mode: str) -> Iterator[Product]:
    """The products of a call, as the module's docstring lists them."""
    lengths = sequence_lengths(case)
    N = int(lengths.sum())
    active = (lengths > torch.arange(case.T)[:, None]).sum(1).tolist()  # b_t
    recurrent = [b for b in active[0 if case.states else 1 :] if b]
    H, P = case.H, case.proj_size or case.H
    projection = P * H if case.proj_size else 0
    for layer in range(case.layers):
        I = case.directions * P if layer else case.I
        for _ in range(case.directions):
            yield Product(N, 4 * H * I)
            yield from (Product(b, 4 * H * P + projection) for b in recurrent)
            if mode == "training":
                yield from (Product(b, 4 * H * P + projection) for b in recurrent)
                yield Product(N, 4 * H * I)  # of the input
                yield Product(N, 4 * H * I)  # of W_ih
                yield Product(sum(recurrent), 4 * H * P)
                yield Product(N, projection)


def _gemm_rate(dtype: str, ceilings: Ceilings) -> float:
    """FLOP/s of the fastest way to products of that precision; 0 where the dtype's own rate was not measured."""
    own = {
        # Three TF32 products make one as exact as float32 (Ootomo and Yokota, 2022, doi 10.1177/10943420221090256).
        "f32": max(ceilings.gemm_f32, ceilings.gemm_tf32 / 3),
        "tf32": ceilings.gemm_tf32,
        "bf16": ceilings.gemm_bf16,
        "amp": ceilings.gemm_bf16,
        "fp16": ceilings.gemm_fp16,
    }.get(dtype, 0.0)
    # Where a narrow dtype has no fast products of its own, its numbers can be widened first.
    return max(own, ceilings.gemm_f32) if own else 0.0


def _cpu_seconds(product: Product, rate: float, item_bytes: int, ceilings: Ceilings) -> float:
    size = product.weights * item_bytes
    return max(2 * product.rows * product.weights / rate, size / _bandwidth(size, ceilings))


def _bandwidth(size: int, ceilings: Ceilings) -> float:
    """Bytes/s at which all threads together read a matrix of so many bytes."""
    share = size / ceilings.threads
    if share <= ceilings.l1_bytes:
        return ceilings.threads * ceilings.read_l1
    if share <= ceilings.l2_bytes:
        return ceilings.threads * ceilings.read_l2
    if size <= ceilings.l3_bytes:
        return ceilings.threads * ceilings.read_l3
    return ceilings.read_dram_all


def _chain(case: Case, mode: str, longest: int) -> int:
    """How many steps of the call depend on each other."""
    steps = case.layers * longest if case.bidirectional else longest + case.layers - 1
    return 2 * steps if mode == "training" else steps


def _turn(case: Case, ceilings: Ceilings) -> float:
    """Seconds that one of those steps waits for the one before; 0 where no barrier was measured."""
    if case.H <= BLOCK_HIDDEN:
        return ceilings.block_barrier
    if case.H <= CLUSTER_HIDDEN and ceilings.cluster_barrier:
        return ceilings.cluster_barrier
    return ceilings.grid_barrier
