"""How exact a float32 product of the recurrence is."""

from __future__ import annotations

import torch


def products(dtype: torch.dtype) -> str:
    """The precision of tl.dot. It obeys the switch that nn.LSTM obeys on a GPU,
    ``torch.backends.cudnn.rnn.fp32_precision``, with all that PyTorch derives it from
    (``torch.backends.fp32_precision``, ``torch.backends.cudnn.allow_tf32``): TF32 by default, else
    three TF32 products for one, whose error is that of float32."""
    if dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"  # for 16 bits it makes no difference


def size(dtype: torch.dtype) -> int:
    """Bytes that a number takes as a factor of such a product: TF32 times three keeps it in two parts."""
    return 8 if products(dtype) == "tf32x3" else dtype.itemsize
