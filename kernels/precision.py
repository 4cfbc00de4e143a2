"""The precision of the recurrence's products, in Triton's terms."""

from __future__ import annotations

import torch

from ..recurrent.precision import allows_tf32


def products(dtype: torch.dtype) -> str:
    """The precision of tl.dot: TF32 where PyTorch allows it, else three TF32 products for one, whose error is that of
    float32."""
    if dtype == torch.float32 and not allows_tf32():
        return "tf32x3"
    return "tf32"  # for 16 bits it makes no difference


def size(dtype: torch.dtype) -> int:
    """Bytes of a value as a factor of such a product: three TF32 products keep it in two parts."""
    return 8 if products(dtype) == "tf32x3" else dtype.itemsize
