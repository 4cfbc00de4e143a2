"""The precision of float32 matrix products on a GPU."""

from __future__ import annotations

import torch


def allows_tf32() -> bool:
    """Whether PyTorch permits TF32 for float32 products in an LSTM: the setting that nn.LSTM uses on a GPU,
    ``torch.backends.cudnn.rnn.fp32_precision``, with the settings that it inherits from
    (``torch.backends.fp32_precision``, ``torch.backends.cudnn.allow_tf32``). True by default.

    ``torch.backends.cuda.matmul`` is a different setting, for single products, which nn.LSTM does not use. For the
    compiled operator ``csrc/torch/cuda/device.cpp`` reads the same setting."""
    # PyTorch's stubs lack the attribute
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]
