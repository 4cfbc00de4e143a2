"""CNN-LSTM models in PyTorch made faster by one call, with the same numbers and the same state dict."""

from ._version import __version__
from .backends import BACKENDS
from .canonical import LSTMSpec
from .functional import lstm
from .modules import LSTM
from .optimize import explain, optimize, revert
from .verify import verify

__all__ = ["BACKENDS", "LSTM", "LSTMSpec", "__version__", "explain", "lstm", "optimize", "revert", "verify"]
