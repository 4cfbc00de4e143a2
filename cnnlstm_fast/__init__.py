"""CNN-LSTM models in PyTorch made faster by one call, with the same numbers and the same state dict."""

from ._version import __version__
from .optimize import explain, optimize, revert
from .recurrent._identity import _restore
from .recurrent.backends import BACKENDS
from .recurrent.canonical import LSTMSpec
from .recurrent.functional import lstm
from .recurrent.modules import LSTM, fast_twin
from .verify import verify

__all__ = ["BACKENDS", "LSTM", "LSTMSpec", "__version__", "explain", "lstm", "optimize", "revert", "verify"]

# A pickle names what it needs by module. These are named by the package, so that their files may move.
for _pickled in (LSTM, LSTMSpec, fast_twin, _restore):
    _pickled.__module__ = __name__
