"""How exact products of float32 have to be on a GPU."""

from __future__ import annotations

import torch


def allows_tf32() -> bool:
    """Whether PyTorch lets products of float32 in an LSTM be TF32: the switch that nn.LSTM obeys on a GPU,
    ``torch.backends.cudnn.rnn.fp32_precision``, with all that PyTorch derives it from
    (``torch.backends.fp32_precision``, ``torch.backends.cudnn.allow_tf32``). It says yes by default.

    The switch of single products, ``torch.backends.cuda.matmul``, is another one, which nn.LSTM does not ask. For the
    compiled operator ``csrc/torch/cuda/device.cpp`` reads the same switch."""
    # PyTorch's stubs do not know the attribute
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]
