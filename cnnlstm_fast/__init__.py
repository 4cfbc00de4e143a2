"""CNN-LSTM models in PyTorch made faster by one call, with the same numbers and the same state dict."""

from ._compile_backend import register as _register
from ._version import __version__
from .optimize import explain, optimize, revert
from .recurrent.backends import BACKENDS, Backend
from .recurrent.canonical import LSTMSpec
from .recurrent.class_swap import _restore
from .recurrent.frozen import clear_cache
from .recurrent.functional import lstm
from .recurrent.modules import LSTM, LSTMCell, fast_class
from .verify import verify

__all__ = [
    "BACKENDS",
    "LSTM",
    "Backend",
    "LSTMCell",
    "LSTMSpec",
    "__version__",
    "clear_cache",
    "explain",
    "lstm",
    "optimize",
    "revert",
    "verify",
]

# A pickle refers to classes and functions by module. These report the package, so that their files may move.
for _pickled in (LSTM, LSTMCell, LSTMSpec, Backend, fast_class, _restore):
    _pickled.__module__ = __name__

_register()
