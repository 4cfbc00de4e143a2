"""Sizes that a region takes, other than those of an example."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ..region import Region, TensorSpec

Sizes = dict[str, int]
"""By the names in ``TensorSpec.shape``."""

CHANGES: tuple[Callable[[int], int], ...] = (
    lambda n: n + 1,
    lambda n: 2 * n,  # where a size must be a multiple
    lambda n: n // 2,
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


def all_changed(region: Region, example: tuple[Tensor, ...]) -> Sizes:
    """Sizes of which as many as possible differ from the example's. For one that stays, the region took no other value
    that was tried: such is the number of channels of a convolution."""
    now = sizes_of(region, example)
    found = now
    for name in sorted(now, key=str.isidentifier, reverse=True):  # the others may be computed from these
        for change in CHANGES if found[name] == now[name] else ():
            tried = _consistent(found | {name: change(now[name])})
            if tried[name] > 0 and tried[name] != now[name] and accepts(region, example, tried):
                found = tried
                break
    return found


def with_ones(region: Region, example: tuple[Tensor, ...]) -> list[Sizes]:
    """For each size that can be 1 and is not, the example's sizes with a 1 there."""
    now = sizes_of(region, example)
    tried = [_consistent(now | {name: 1}) for name, n in now.items() if n != 1 and name.isidentifier()]
    return [sizes for sizes in tried if accepts(region, example, sizes)]


def accepts(region: Region, example: tuple[Tensor, ...], sizes: Sizes) -> bool:
    """Whether PyTorch runs the region at these sizes; found out without computing."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.no_grad(), _quiet():
            region.module(
                *[
                    t.new_empty(shape)
                    for t, shape in zip(example, shapes(region.inputs, example, sizes), strict=True)
                ]
            )
    except (RuntimeError, IndexError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's log of what the region does not take."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


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
