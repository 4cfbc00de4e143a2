"""The name by which pickles of version 0.1.0 find the function that restores a layer."""

from .recurrent.class_swap import _restore

__all__ = ["_restore"]
