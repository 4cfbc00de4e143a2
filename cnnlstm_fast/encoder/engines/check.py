"""Whether an engine computes what the region computes, also at other sizes than it was built with."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...contract import MOST_DRAWS, Result, compare
from ..agreement import agree, first_line
from ..conditions import holds, parse
from ..region import Region
from .base import Options, Run
from .cast import cast
from .sizes import Sizes, other_sizes, shapes, sizes_of

Results = tuple[Tensor, ...]
ENOUGH_NUMBERS = 2**15
"""The norm of so many rounding errors varies by less than a hundredth, if they are independent."""


def check(region: Region, run: Run, example: tuple[Tensor, ...], options: Options) -> None:
    """Compares an engine with the region at the example's sizes, with all open sizes changed, and with each of them 1.

    The limit is that of ``contract.bound``, with PyTorch's error in the dtype of the products; at the other sizes
    results that agree with PyTorch's pass without a float64 reference, which takes many times as long.

    Raises:
        RuntimeError: the engine fails, or a result has another shape or is too far off. This finds an engine that fixed
            a size by the example, as exporters do without a word.
    """
    with torch.no_grad():
        expected = _expected(region, example, options)
        sizes = sizes_of(region, example)
        _check_at(region, run, expected, sizes, options)
        for other in expected.others:
            if other != sizes and not _agrees_at(region, run, expected, other, options):
                _check_at(region, run, expected, other, options)


class _Expected:
    """What a region computes of an example, and of its numbers at other sizes; kept for the engines that follow."""

    def __init__(self, region: Region, example: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        self.dtype = dtype
        """That of the products."""
        self._specs, self._example = region.inputs, example
        self._known: dict[tuple[bool, str, int], Results | None] = {}
        self.others = other_sizes(sizes_of(region, example), lambda sizes: self._takes(region, sizes))

    def is_of(self, example: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        return dtype == self.dtype and all(a is b for a, b in zip(self._example, example, strict=True))

    def eager(self, region: Region, sizes: Sizes, k: int) -> Results:
        """In the k-th order of the numbers."""
        key = False, str(sizes), k
        if key not in self._known:
            call = region.module if self.dtype == torch.float32 else cast(region, self.dtype)
            self._known[key] = tuple(call(*self.inputs(sizes, k)))
        found = self._known[key]
        assert found is not None
        return found

    def _takes(self, region: Region, sizes: Sizes) -> bool:
        given = shapes(self._specs, self._example, sizes)
        if not all(holds(parse(text), given) for text in region.conditions):
            return False
        try:
            self.eager(region, sizes, 0)
        except (RuntimeError, IndexError, ValueError):
            return False
        return True

    def exact(self, region: Region, sizes: Sizes, k: int) -> Results | None:
        """In float64; None where the region does not compute in it, such as one with a dtype among its arguments."""
        key = True, str(sizes), k
        if key not in self._known:
            try:
                self._known[key] = tuple(cast(region, torch.float64)(*self.inputs(sizes, k)))
            except Exception:
                self._known[key] = None
        return self._known[key]

    def inputs(self, sizes: Sizes, k: int) -> tuple[Tensor, ...]:
        """The numbers of the example, repeated or left out as the sizes demand, and for each k in another order."""
        found = []
        for tensor, shape in zip(self._example, shapes(self._specs, self._example, sizes), strict=True):
            index = torch.arange(torch.Size(shape).numel()) + k
            found.append(tensor.reshape(-1)[index % max(1, tensor.numel())].view(shape))
        return tuple(found)


_last: tuple[weakref.ref[nn.Module], _Expected] | None = None


def _expected(region: Region, example: tuple[Tensor, ...], options: Options) -> _Expected:
    """What is known of the region that was asked for last, if it is this one."""
    global _last
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    if _last is not None and _last[0]() is region.module and _last[1].is_of(example, dtype):
        return _last[1]
    made = _Expected(region, example, dtype)
    _last = weakref.ref(region.module, forget), made
    return made


def forget(_: object = None) -> None:
    """Frees what is kept."""
    global _last
    _last = None


def _agrees_at(region: Region, run: Run, expected: _Expected, sizes: Sizes, options: Options) -> bool:
    inputs = expected.inputs(sizes, 0)
    try:
        found = tuple(run(*inputs))
    except Exception as error:
        raise RuntimeError(f"it fails on inputs {_shapes(inputs)}: {first_line(error)}") from error
    return agree(found, expected.eager(region, sizes, 0), options.precision)


def _check_at(region: Region, run: Run, expected: _Expected, sizes: Sizes, options: Options) -> None:
    where = _shapes(expected.inputs(sizes, 0))

    def draw(k: int) -> Iterator[Result]:
        if k > 0 and time.monotonic() > options.deadline:  # a draw of a slow region takes seconds, in float64
            raise RuntimeError(
                "its error is above the limit, and nothing of `budget` was left to compare more"
            )
        inputs = expected.inputs(sizes, k)
        found, usual, exact = (
            tuple(run(*inputs)),
            expected.eager(region, sizes, k),
            expected.exact(region, sizes, k),
        )
        for j, (out, own, spec) in enumerate(zip(found, usual, region.outputs, strict=True)):
            if out.shape != own.shape:
                raise RuntimeError(
                    f"a size was fixed: output {j} has the shape {tuple(out.shape)} instead of {tuple(own.shape)}"
                )
            if out.dtype != spec.dtype:
                raise RuntimeError(f"output {j} is {out.dtype} instead of {spec.dtype}")
            if exact is None or not out.is_floating_point():
                if not agree([out], [own.to(out.dtype)], options.precision):
                    raise RuntimeError(f"output {j} differs from PyTorch's")
                continue
            yield Result(f"output {j}", expected.dtype, out, own, exact[j])

    try:
        rows = compare(draw, most=_draws(expected.eager(region, sizes, 0)))
    except Exception as error:
        raise RuntimeError(f"it fails on inputs {where}: {first_line(error)}") from error
    for row in rows:
        if not row.ok:
            raise RuntimeError(
                f"{row.what} of inputs {where} is wrong: error {row.fast:.1e}, PyTorch's {row.eager:.1e}"
            )


def _draws(results: Results) -> int:
    """How many draws tell a larger error from a random one: the error of many numbers varies little, and a draw in
    float64 may take seconds."""
    numbers = min((t.numel() for t in results if t.is_floating_point()), default=1)
    return max(2, min(MOST_DRAWS, ENOUGH_NUMBERS // max(1, numbers)))


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in inputs)
