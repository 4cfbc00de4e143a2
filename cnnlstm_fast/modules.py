"""Where layers that version 0.1.0 pickled look for their class: ``recurrent/modules.py`` holds it now."""

from .recurrent.modules import LSTM, fast_twin

__all__ = ["LSTM", "fast_twin"]
