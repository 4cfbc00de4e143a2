"""Sizes that a region takes, other than those of an example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import Tensor

from ..region import Region, TensorSpec

Sizes = dict[str, int]
"""By the names in ``TensorSpec.shape``."""

CHANGES: tuple[Callable[[int], int], ...] = (
    lambda n: n // 2 if n >= 16 else n + 1,  # less takes less time
    lambda n: n + 1,
    lambda n: 2 * n,  # where a size must be a multiple
    lambda n: n + 2,
)


def sizes_of(region: Region, example: tuple[Tensor, ...]) -> Sizes:
    """The example's."""
    return {
        size: n
        for spec, tensor in zip(region.inputs, example, strict=True)
        for size, n in zip(spec.shape, tensor.shape, strict=True)
        if isinstance(size, str)
    }


def other_sizes(now: Sizes, takes: Callable[[Sizes], bool]) -> list[Sizes]:
    """Sizes at which an engine is to be compared beside the example's: all changed, and each of them 1.

    Args:
        now: those of the example.
        takes: whether the region runs at given sizes.
    """
    return [_all_changed(now, takes), *_with_ones(now, takes)]


def _all_changed(now: Sizes, takes: Callable[[Sizes], bool]) -> Sizes:
    """Sizes of which as many as possible differ from the example's. For one that stays, the region took no other value
    that was tried: such is the number of channels of a convolution."""
    found = now
    # those first of which the others may be computed, and the largest, which may become less
    for name in sorted(now, key=lambda name: (name.isidentifier(), now[name]), reverse=True):
        for change in CHANGES if found[name] == now[name] else ():
            tried = _consistent(found | {name: change(now[name])})
            if tried[name] > 0 and tried[name] != now[name] and takes(tried):
                found = tried
                break
    return found


def _with_ones(now: Sizes, takes: Callable[[Sizes], bool]) -> list[Sizes]:
    """For each size that can be 1 and is not, the example's sizes with a 1 there."""
    tried = [_consistent(now | {name: 1}) for name, n in now.items() if n != 1 and name.isidentifier()]
    return [sizes for sizes in tried if takes(sizes)]


def shapes(specs: tuple[TensorSpec, ...], example: tuple[Tensor, ...], sizes: Sizes) -> list[list[int]]:
    """The shapes of a region's inputs at these sizes."""
    return [
        [
            sizes[size] if isinstance(size, str) else n
            for size, n in zip(spec.shape, tensor.shape, strict=True)
        ]
        for spec, tensor in zip(specs, example, strict=True)
    ]


def _consistent(sizes: Sizes) -> Sizes:
    """With the sizes that are computed from others, such as "2*s0", computed from them."""
    plain = {name: n for name, n in sizes.items() if name.isidentifier()}
    result = dict(sizes)
    for expression in sizes.keys() - plain.keys():
        with contextlib.suppress(NameError):  # of a symbol that is no size of an input: it varies by itself
            result[expression] = int(eval(expression, {"__builtins__": {}}, plain))
    return result
