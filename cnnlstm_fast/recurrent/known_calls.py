"""Calls of a layer whose backend is known to be a compiled one for CPUs: C++ runs them from the layer's attributes to
the result (``csrc/torch/python/known_calls.h``). A short step takes a few microseconds in the kernel, and would take
several times as long in Python.

Whatever is not plain inference (gradients, autocast, tracers, ``torch.func``, a parametrized weight) is answered by
None, and so is a call of new sizes: the layer then goes the usual way, which validates the call and chooses a backend.
"""

from __future__ import annotations

from typing import Any

from .. import _native

if _native.available:
    from .._guard import admit_known, admit_known_stack, forget_known, run_known, run_known_stack
else:

    def run_known(layer: Any, input: Any, hx: Any, /) -> None:
        """Nothing was compiled."""

    def admit_known(layer: Any, input: Any, hx: Any, backend: str, /) -> None:
        """Nothing was compiled."""

    def run_known_stack(
        backend: str, weights: Any, input: Any, h0: Any, c0: Any, bidirectional: bool, /
    ) -> None:
        """Nothing was compiled."""

    def admit_known_stack(
        backend: str, weights: Any, input: Any, h0: Any, c0: Any, bidirectional: bool, chosen: str, /
    ) -> None:
        """Nothing was compiled."""

    def forget_known() -> None:
        """Nothing was compiled."""


__all__ = ["admit_known", "admit_known_stack", "forget_known", "run_known", "run_known_stack"]
