"""Calls that a tracer or a function transform of PyTorch takes part in: the layer does there what nn.LSTM does.

``torch.jit.trace``, the ONNX exporters, ``openvino.convert_model`` and ``torch.fx.symbolic_trace`` know PyTorch's own
operators, and their users expect an artefact that is made of these. Derivatives in forward mode
(``torch.func.jvp``, ``jacfwd``) need a formula that the operator lacks. ``torch.compile``, ``torch.export`` and the
other transforms of ``torch.func`` (``transforms.py``) are served by the operator of this package.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.autograd import forward_ad

from .transforms import transformed, without_rule

stood_aside: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""By layer what it has left calls to, for ``explain``."""


def tracer_of(input: Any) -> str | None:
    """What traces or transforms a call on ``input`` that is not for this package's operator, None if nothing does."""
    if torch.compiler.is_compiling():
        return "torch.onnx" if torch.onnx.is_in_onnx_export() else None
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if transformed() and (transform := without_rule()) is not None:
        return transform
    if forward_ad._current_level >= 0:  # the operator has no tangents, and would lose them without a word
        return "torch.autograd.forward_ad"
    return "torch.fx" if isinstance(input, fx.Proxy) else None


def run_as_pytorch(
    module: nn.Module, plain: type[nn.Module], tracer: str, input: Any, hx: Any, weights: dict[str, Any]
) -> Any:
    """The call as the class ``plain`` runs it, nn.LSTM or nn.LSTMCell.

    Args:
        weights: the attributes from which ``plain`` reads those of this call. They need not be the module's Parameters:
            ``functional_call`` replaces these, and a parametrization computes others.
    """
    stood_aside.setdefault(module, set()).add(tracer)
    if tracer == "torch.fx" and type(module).original_class.forward is plain.forward:  # type: ignore[attr-defined]
        # a call of the module, as of every module of torch.nn; the forward of a subclass is traced
        target = input.tracer.path_of_module(module)
        return input.tracer.create_proxy("call_module", target, (input,) if hx is None else (input, hx), {})
    layer = as_plain(module, plain)
    layer.__dict__.update(weights)
    return plain.forward(layer, input, hx)


def as_plain(module: nn.Module, plain: type[nn.Module]) -> nn.Module:
    """A module of that class with the same Parameters and attributes."""
    layer: nn.Module = object.__new__(plain)
    layer.__dict__.update(module.__dict__)
    return layer
