"""Which sizes of a call may vary: found by running the module itself on other sizes.

A graph is captured once for all batch sizes, lengths and widths. Capture must know which dimensions these are, since
one that is always the same (channels, a height that the code asserts) may decide which branch the code takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

Dims = tuple[tuple[int, int], ...]
"""Pairs (number of the tensor, dimension)."""

CAPTURE_SIZE = 3
"""In capture the k-th of the varying dimensions whose size is 1 in the example has size ``CAPTURE_SIZE + 2 * k``: a 1
may broadcast and is contiguous in every order, so that a graph of it holds for 1 alone."""


class Group(NamedTuple):
    """Dimensions that vary together, and a call in which they have."""

    dims: Dims
    tensors: tuple[Tensor, ...]


def find(call: Callable[..., Any], tensors: tuple[Tensor, ...], deadline: float) -> list[Group]:
    """Tries other sizes for every dimension of the tensors: alone, and together with those of the same size, which may
    be the same quantity, such as a batch.

    Args:
        call: runs the module on tensors; raises whatever the module raises where sizes do not fit.
        deadline: by ``time.monotonic``; dimensions that were not tried until then are taken for fixed.
    """
    found: list[Group] = []
    tried: set[Dims] = set()
    for dims in _groups(tensors):
        if dims in tried:
            continue
        tried.add(dims)
        for size in _other_sizes(_size(tensors, dims)):
            if time.monotonic() > deadline:
                return found
            changed = resized(tensors, dict.fromkeys(dims, size))
            try:
                call(*changed)
            except Exception:  # these sizes do not fit: that is the question
                continue
            found.append(Group(dims, changed))
            break
    return found


def varying(groups: list[Group]) -> frozenset[tuple[int, int]]:
    """All dimensions of the groups."""
    return frozenset(pair for group in groups for pair in group.dims)


def for_capture(tensors: tuple[Tensor, ...], groups: list[Group]) -> tuple[Tensor, ...]:
    """The tensors without a size of 1 in the dimensions that vary."""
    sizes: dict[tuple[int, int], int] = {}
    for group in sorted(groups, key=lambda group: -len(group.dims)):
        if not any(pair in sizes for pair in group.dims) and _size(tensors, group.dims) == 1:
            sizes |= dict.fromkeys(group.dims, CAPTURE_SIZE + 2 * len(sizes))
    return resized(tensors, sizes)


def _size(tensors: tuple[Tensor, ...], dims: Dims) -> int:
    return tensors[dims[0][0]].size(dims[0][1])


def resized(tensors: tuple[Tensor, ...], sizes: dict[tuple[int, int], int]) -> tuple[Tensor, ...]:
    """The tensors with other sizes, filled with their own values again and again: indices and lengths stay valid."""
    changed = list(tensors)
    for (k, dimension), size in sizes.items():
        index = torch.arange(size, device=changed[k].device) % max(changed[k].size(dimension), 1)
        changed[k] = changed[k].index_select(dimension, index)
    return tuple(changed)


def _groups(tensors: tuple[Tensor, ...]) -> Iterator[Dims]:
    """Each dimension alone, with the same one of other tensors, with all dimensions of its size there, and with one of
    these."""
    everywhere = [(k, d) for k, t in enumerate(tensors) for d in range(t.dim()) if t.size(d) > 0]
    for k, d in everywhere:
        same = [pair for pair in everywhere if _size(tensors, (pair,)) == tensors[k].size(d)]
        yield ((k, d),)
        yield tuple(pair for pair in same if pair[1] == d)
        yield tuple(pair for pair in same if pair[0] != k or pair[1] == d)
        for other in sorted({pair[1] for pair in same}):  # such as the second one of states, (L, B, H)
            yield tuple(pair for pair in same if pair == (k, d) or (pair[0] != k and pair[1] == other))


def _other_sizes(size: int) -> tuple[int, ...]:
    """The half, which takes less time, or the double: a few more may fit by chance, where a network rounds a height
    down to what it expects."""
    return (2 * size,) if size < 8 else (size // 2, 2 * size)
