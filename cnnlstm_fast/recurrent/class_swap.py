"""Swaps the class of an nn.LSTM in place, and lets the fast class report the original one.

Dynamo breaks the graph at every object for which ``isinstance(m, nn.LSTM)`` holds (unless the global switch
``torch._dynamo.config.allow_rnn`` is set), and user code relies on exactly that check. So the fast layer is no
subclass of nn.LSTM. It *reports* its original class through ``__class__``, which ``isinstance`` checks after the
real type, and reports its real type while a graph is being traced.

Consequences of a reported class:

- Assigning ``m.__class__`` (parametrizations assign a class that they create) sets the fast class of the assigned
  class, so that the layer stays fast and reports what was assigned.
- Pickle and copy refuse an object whose real and reported class differ, hence ``__reduce_ex__``.
- ``torch.jit.script`` compiles the source of the real class, hence ``__prepare_scriptable__``.
- Code that compares ``type(m)`` sees the fast class, so that ``torch.ao.quantization.quantize_dynamic`` leaves the
  layer as it is. It looks ``type(m)`` up in the caller's set of classes and in its table of quantized ones, and
  ``from_float`` of the quantized class demands the type again: of an LSTM that it is in a set with nn.LSTM, of a cell
  that it *is* nn.LSTMCell. It offers no hook before that. A metaclass by which the fast class equals and hashes as
  the original would pass for an LSTM, but not for a cell, and ``{nn.LSTM: ..., cnnlstm_fast.LSTM: ...}`` would lose an
  entry; a real type of nn.LSTM is what Dynamo does not trace. So such models are quantized after ``revert``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .tracers import as_plain

_REAL_CLASS: Any = object.__dict__["__class__"]


class FastClass:
    """Mixin of every fast class."""

    original_class: type[nn.Module]
    """The class that instances report."""
    fast_class_of: Callable[[Any], type]
    """Maps an original class to its fast class."""

    def _reported(self) -> type:
        return type(self) if _graph_is_traced() else type(self).original_class

    def _assign(self, cls: type) -> None:
        swap_class(self, cls if issubclass(cls, FastClass) else type(self).fast_class_of(cls))

    __class__ = property(_reported, _assign)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cls, fast_class_of = type(self), type(self).fast_class_of
        # a fast class that was created at run time cannot be imported by name: its original class can
        named = cls.original_class if fast_class_of(cls.original_class) is cls else cls
        return _restore, (fast_class_of, named), self.__getstate__()

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` puts into the place of the layer, in the model, too, before it compiles it."""
        m: Any = self
        return as_plain(m, type(self).original_class)


def swap_class(module: Any, cls: type) -> None:
    """Changes the type of the object in place; its attributes, hooks and parameters stay."""
    _REAL_CLASS.__set__(module, cls)


def is_fast(module: Any) -> bool:
    return issubclass(type(module), FastClass)


def _graph_is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._guards.TracingContext.try_get() is not None


def _restore(fast_class_of: Callable[[type], type], cls: type) -> Any:
    return object.__new__(fast_class_of(cls))
