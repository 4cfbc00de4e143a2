"""A lower bound on the time of a call, from the measured peak rates of the machine (roofline model).

On both devices the bound starts from the matrix products of a call. A product takes r rows through a matrix of w
numbers: 2*r*w FLOP. With N the sequences' steps in total, b_t the sequences that reach step t, P the proj_size
or H, D the directions, I_l the layer's input size (D*P above the first), and R = 4H*P + P*H numbers of recurrent
weights (without P*H where nothing is projected), every layer and direction has

- the input product of all steps: r = N, w = 4H*I_l;
- at each step t the recurrent product: r = b_t, w = R. At t = 0 there is none unless the caller hands in states;
- in training the same product in the backward pass, at each of those steps: r = b_t, w = R;
- in training the gradients of the input and of W_ih: r = N, w = 4H*I_l twice;
- in training the gradient of W_hh (r = sum of those b_t, w = 4H*P) and of the projection (r = N, w = P*H).

Activations, biases, states, reading the input, writing the output and launch overhead count as free.

**CPU.** A product takes the maximum of its FLOP at the peak rate and of reading its matrix once (writing it, where it
is a gradient) from the nearest level of memory that holds it: L1 or L2 where each thread's share of the matrix fits
into that cache of a core, else L3, else DRAM. All threads read at the same time, from the caches each as fast as a
single one. The times of the products add up.

This makes two assumptions that hold for all implementations known to us: a matrix that does not fit into a cache is
not kept there in part, and a product is not computed while another one waits for its matrix.

**GPU.** The maximum of all FLOP at the peak rate and of a chain of dependent steps, each of which takes one
synchronization (the first one takes a kernel launch, which is longer): T + L - 1 steps for L layers in one direction,
which can run as a wavefront, and L*T in two, since a layer needs the last step of both directions of the layer below
before its first; twice that in training. The cost of a synchronization depends on what shares the recurrent weights:
the threads of a block up to H = 128, the blocks of a cluster up to H = 640 (where there are clusters), else the whole
GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..cases import Case
from .peaks import Roofline

BLOCK_HIDDEN, CLUSTER_HIDDEN = 128, 640
"""The largest H whose recurrent weights one block, one cluster keeps in registers and shared memory."""
_ITEM_BYTES = {"f32": 4, "tf32": 4, "bf16": 2, "amp": 2, "fp16": 2}


class Product(NamedTuple):
    """2 * rows * weights FLOP with a matrix of ``weights`` numbers, which is read or written."""

    rows: int
    weights: int


def lower_bound(case: Case, mode: str, dtype: str, roofline: Roofline, device: str) -> float | None:
    """The least time of a call in seconds; the module's docstring gives the formula and what it neglects.

    Args:
        mode: "inference" or "training".
        dtype: of the products: a row's, or "tf32" for TF32 products of float32 numbers.
        roofline: measured on that device.
        device: "cpu" or "cuda".

    Returns:
        None for a whole model, for a call without any step, and where no rate of that dtype was measured.
    """
    lengths = sequence_lengths(case)
    rate = _gemm_rate(dtype, roofline)
    if case.model or not rate or not lengths.any():
        return None
    work = list(products(case, mode))
    if device == "cpu":
        return sum(_cpu_seconds(product, rate, _ITEM_BYTES[dtype], roofline) for product in work)
    flop = sum(2 * product.rows * product.weights for product in work)
    return max(flop / rate, _chain(case, mode, int(lengths.max())) * _synchronization(case, roofline))


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


def _gemm_rate(dtype: str, roofline: Roofline) -> float:
    """FLOP/s of the fastest products of at least that precision; 0 where the dtype's own rate was not measured."""
    own = {
        # Three TF32 products are as accurate as one in float32 (Ootomo, Yokota 2022, doi 10.1177/10943420221090256).
        "f32": max(roofline.gemm_f32, roofline.gemm_tf32 / 3),
        "tf32": roofline.gemm_tf32,
        "bf16": roofline.gemm_bf16,
        "amp": roofline.gemm_bf16,
        "fp16": roofline.gemm_fp16,
    }.get(dtype, 0.0)
    # A dtype without fast products of its own can be converted to float32 first.
    return max(own, roofline.gemm_f32) if own else 0.0


def _cpu_seconds(product: Product, rate: float, item_bytes: int, roofline: Roofline) -> float:
    size = product.weights * item_bytes
    return max(2 * product.rows * product.weights / rate, size / _bandwidth(size, roofline))


def _bandwidth(size: int, roofline: Roofline) -> float:
    """Bytes/s at which all threads together read a matrix of ``size`` bytes."""
    share = size / roofline.threads
    if share <= roofline.l1_bytes:
        return roofline.threads * roofline.read_l1
    if share <= roofline.l2_bytes:
        return roofline.threads * roofline.read_l2
    if size <= roofline.l3_bytes:
        return roofline.threads * roofline.read_l3
    return roofline.read_dram_all


def _chain(case: Case, mode: str, longest: int) -> int:
    """Length of the chain of dependent steps."""
    steps = case.layers * longest if case.bidirectional else longest + case.layers - 1
    return 2 * steps if mode == "training" else steps


def _synchronization(case: Case, roofline: Roofline) -> float:
    """Seconds from one of those steps to the next; 0 where no barrier was measured."""
    if case.H <= BLOCK_HIDDEN:
        return roofline.block_barrier
    if case.H <= CLUSTER_HIDDEN and roofline.cluster_barrier:
        return roofline.cluster_barrier
    return roofline.grid_barrier
