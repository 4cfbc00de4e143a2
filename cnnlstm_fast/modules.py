"""The names by which pickles of version 0.1.0 find the LSTM, which is now in ``recurrent/modules.py``."""

from .recurrent.modules import LSTM
from .recurrent.modules import fast_class as fast_twin

__all__ = ["LSTM", "fast_twin"]
