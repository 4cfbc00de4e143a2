"""The precision of float32 matrix products."""

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


def reduced_by_onednn() -> dict[str, str]:
    """PyTorch's settings that permit oneDNN less than float32 for the products of float32 layers on a CPU, with their
    values, bf16 or tf32. They inherit from ``torch.backends.mkldnn.fp32_precision`` and that from
    ``torch.backends.fp32_precision`` where they are "none", as by default.

    PyTorch 2.13 heeds ``matmul`` in an LSTM with projection, in packed sequences of several lengths and in a cell, and
    ``rnn`` nowhere: nn.LSTM's results with it are the same to the last bit. The backend ``cpu`` heeds neither: its
    kernels with products in bfloat16 are those of calls whose tensors are in bfloat16."""
    settings = {name: getattr(torch.backends.mkldnn, name).fp32_precision for name in ("rnn", "matmul")}
    return {
        f"torch.backends.mkldnn.{name}.fp32_precision": value
        for name, value in settings.items()
        if value in ("bf16", "tf32")
    }
