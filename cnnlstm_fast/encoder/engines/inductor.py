"""The compiler of torch.compile, TorchInductor, on the region's graph with its weights frozen, without Dynamo."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from ..region import Region
from .base import Engine, Options, Run, first_reason
from .cast import cast
from .sizes import sizes_of

MOST_SIZES = 1024
"""So many sizes of inputs are remembered as being within what the compiled code assumes."""


def _supports(region: Region, options: Options) -> str | None:
    return first_reason(
        (options.precision not in (None, "bf16"), f"it does not compute in {options.precision}"),
        (not has_compiler(), "it needs a C++ compiler, and there is none (CXX, g++, clang++)"),
    )


def has_compiler() -> bool:
    """Whether there is the C++ compiler that TorchInductor needs."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    return any(map(shutil.which, names))


def _build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
    """Compiled once with open sizes, except those that are 1 in the example. What the compiler assumed of sizes is
    checked in each call: where it does not hold, the region runs as in eager PyTorch. "bf16" converts weights and
    activations to bfloat16.

    Raises:
        RuntimeError: the assumptions exclude the example itself.
    """
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    compiled, holds = _compile(
        cast(region, dtype, borders=options.precision == "bf16"), region, example, options.threads
    )
    if not holds(tuple(t.shape for t in example)):
        raise RuntimeError("the compiled code excludes the sizes of the example")
    return _run(region, compiled, holds)


def _compile(
    module: fx.GraphModule, region: Region, example: tuple[Tensor, ...], threads: int
) -> tuple[Callable[..., Sequence[Tensor]], Callable[[tuple[torch.Size, ...]], bool]]:
    """The compiled module, and whether it takes inputs of given sizes."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with _settings(threads):
        env = ShapeEnv()
        mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
        inputs: list[Any] = list(_fake(region, example, env, mode))
        with tracing(TracingContext(mode)):
            compiled: Any = compile_fx(module, inputs)
        assumed = env.produce_guards_expression(inputs, ignore_static=False)

    def holds(sizes: tuple[torch.Size, ...]) -> bool:
        contiguous = [torch.empty(shape, device="meta") for shape in sizes]
        return assumed is None or bool(env.evaluate_guards_expression(assumed, contiguous))

    return compiled, holds


def _fake(region: Region, example: tuple[Tensor, ...], env: Any, mode: Any) -> Iterator[Tensor]:
    """The inputs without data, with equal symbols where sizes are always equal and nowhere else."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    symbols: dict[str, Any] = {}
    for name, size in sizes_of(region, example).items():
        if size == 1:
            symbols[name] = 1  # the compiler would mostly exclude a 1 where the size is open
            continue
        source = ConstantSource(f"size_{len(symbols)}")
        symbol = env.create_symbol(size, source, DimDynamic.DYNAMIC, do_not_specialize_zero_one=True)
        symbols[name] = env.create_symintnode(symbol, hint=size, source=source)
    for spec in region.inputs:
        shape = [symbols[size] if isinstance(size, str) else size for size in spec.shape]
        with mode:
            yield torch.empty(shape, dtype=spec.dtype)


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """The compiler's settings, and what it leaves changed."""
    from torch._inductor import config
    from torch.fx.experimental import _config as symbolic

    patches = {"freezing": True, "cpp.threads": threads, "compile_threads": 1}  # no pool of processes stays
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))  # it names its cache there
        stack.enter_context(torch.no_grad())
        stack.enter_context(config.patch(patches))
        # without it, a condition on a size that might be 1 is decided by the example
        stack.enter_context(symbolic.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        yield


def _run(
    region: Region,
    compiled: Callable[..., Sequence[Tensor]],
    holds: Callable[[tuple[torch.Size, ...]], bool],
) -> Run:
    eager = region.module.forward
    known: dict[tuple[torch.Size, ...], bool] = {}

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        sizes = tuple([t.shape for t in tensors])
        compiles = known.get(sizes)
        if compiles is None:
            if len(known) >= MOST_SIZES:
                known.clear()
            compiles = known[sizes] = all(map(torch.Size.numel, sizes)) and holds(sizes)
        if not compiles:
            return eager(*tensors)
        return tuple(compiled(*[t.detach().contiguous() for t in tensors]))

    return run


ENGINE = Engine("inductor", "TorchInductor, frozen", _build, _supports, setup_seconds=0.3)
