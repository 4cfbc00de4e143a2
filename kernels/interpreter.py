"""Fixes of Triton's interpreter (TRITON_INTERPRET=1): it truncates to bfloat16 where a GPU rounds, multiplies bfloat16
matrices as if they were integers, and patches the whole language again for every function call within a kernel, which
took most of the time (seen in Triton 3.6 and 3.7)."""

from __future__ import annotations

import functools
from typing import Any

import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter


def running() -> bool:
    """Whether kernels are interpreted in this process, which is fixed when they are imported."""
    from .forward import forward_kernel

    return isinstance(forward_kernel, interpreter.InterpretedFunction)


@functools.cache
def mend() -> None:
    """Replaces the functions at fault, once."""
    patch_for = functools.cache(interpreter._patch_lang)
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def mended_convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            return _narrow(values)
        if source == tl.bfloat16 and target == tl.float32:
            return _widen(values)
        return convert(values, source, target, rounding)

    def mended_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(_widen(factor.data), tl.float32) for factor in (a, b))
        return dot(self, a, b, *rest)

    def mended_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        patch_for(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = mended_call
    interpreter._convert_float = mended_convert
    interpreter.InterpreterBuilder.create_dot = mended_dot


def _narrow(values: Any) -> Any:
    """float32 -> the bits of bfloat16, in uint16."""
    return torch.from_numpy(numpy.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()


def _widen(bits: Any) -> Any:
    """Back, exactly."""
    return torch.from_numpy(numpy.ascontiguousarray(bits)).view(torch.bfloat16).float().numpy()
