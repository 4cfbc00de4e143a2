"""Where layers that version 0.1.0 pickled look for the function that restores them."""

from .recurrent._identity import _restore

__all__ = ["_restore"]
