"""Whether an engine computes what the region computes, also at other sizes than it was built with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...contract import Result, compare
from ..agreement import first_line
from ..region import Region
from .base import Options, Run
from .cast import cast
from .sizes import Sizes, all_changed, shapes, sizes_of, with_ones


def check(region: Region, run: Run, example: tuple[Tensor, ...], options: Options) -> None:
    """Compares an engine with the region at the example's sizes, with all open sizes changed, and with each of them 1,
    unless an earlier build was.

    The limit is that of ``contract.bound``, with PyTorch's error in the dtype of the products.

    Raises:
        RuntimeError: the engine fails, or a result has another shape or is too far off. This finds an engine that fixed
            a size by the example, as exporters do without a word.
    """
    if options.known:
        return
    narrow = options.precision == "bf16"
    dtype = torch.bfloat16 if narrow else torch.float32
    eager = cast(region, dtype) if narrow else region.module
    exact = cast(region, torch.float64)
    with torch.no_grad():
        for sizes in (sizes_of(region, example), all_changed(region, example), *with_ones(region, example)):
            _check_at(region, run, eager, exact, dtype, example, sizes)


def _check_at(
    region: Region,
    run: Run,
    eager: Run,
    exact: Run,
    dtype: torch.dtype,
    example: tuple[Tensor, ...],
    sizes: Sizes,
) -> None:
    def draw(k: int) -> Iterator[Result]:
        inputs = _inputs(region, example, sizes, k)
        found, expected, reference = (tuple(call(*inputs)) for call in (run, eager, exact))
        for j, (out, own, ref) in enumerate(zip(found, expected, reference, strict=True)):
            if out.shape != ref.shape:
                raise RuntimeError(
                    f"a size was fixed: output {j} of inputs {_shapes(inputs)} has the shape {tuple(out.shape)} "
                    f"instead of {tuple(ref.shape)}"
                )
            yield Result(f"output {j}", dtype, out, own, ref)

    try:
        rows = compare(draw)
    except Exception as error:
        where = _shapes(_inputs(region, example, sizes, 0))
        raise RuntimeError(f"it fails on inputs {where}: {first_line(error)}") from error
    for row in rows:
        if not row.ok:
            where = _shapes(_inputs(region, example, sizes, 0))
            raise RuntimeError(
                f"{row.what} of inputs {where} is wrong: error {row.fast:.1e}, PyTorch's {row.eager:.1e}"
            )


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in inputs)


def _inputs(region: Region, example: tuple[Tensor, ...], sizes: Sizes, draw: int) -> tuple[Tensor, ...]:
    """The numbers of the example, repeated or left out as the sizes demand, and for each draw in another order."""
    found = []
    for tensor, shape in zip(example, shapes(region, example, sizes), strict=True):
        index = torch.arange(torch.Size(shape).numel()) + draw
        found.append(tensor.reshape(-1)[index % max(1, tensor.numel())].view(shape))
    return tuple(found)
