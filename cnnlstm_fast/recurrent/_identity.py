"""Being an nn.LSTM to the whole world except to the graph tracer. The one trick of the package, all of it here.

Dynamo breaks the graph at every object for which ``isinstance(m, nn.LSTM)`` holds (unless the global switch
``torch._dynamo.config.allow_rnn`` is set), and other people's models ask exactly that. So the fast layer is no
subclass of nn.LSTM. It *reports* the class that it stands in for through ``__class__``, which ``isinstance``
consults after the real type, and reports its real type while a graph is being traced.

What follows from a reported class:

- Assigning ``m.__class__`` (parametrizations assign a class that they make) ends at the fast twin of the
  assigned class, so that the layer stays fast and reports what was assigned.
- Pickle and copy refuse an object whose real and reported class differ, hence ``__reduce_ex__``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_REAL_CLASS: Any = object.__dict__["__class__"]


class StandIn:
    """Mixin of every fast class."""

    stands_for: type[nn.Module]
    """The class that instances report to be."""
    twin_of: Callable[[Any], type]
    """Gives the fast class that stands in for a class."""

    def _reported(self) -> type:
        return type(self) if _graph_is_traced() else type(self).stands_for

    def _assign(self, cls: type) -> None:
        set_real_class(self, cls if issubclass(cls, StandIn) else type(self).twin_of(cls))

    __class__ = property(_reported, _assign)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cls, twin_of = type(self), type(self).twin_of
        # a twin made on the fly has no import path of its own: the class that it stands for has
        named = cls.stands_for if twin_of(cls.stands_for) is cls else cls
        return _restore, (twin_of, named), self.__getstate__()


def set_real_class(module: Any, cls: type) -> None:
    """Changes the type of the object in place; its attributes, hooks and parameters stay."""
    _REAL_CLASS.__set__(module, cls)


def is_stand_in(module: Any) -> bool:
    return issubclass(type(module), StandIn)


def _graph_is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._guards.TracingContext.try_get() is not None


def _restore(twin_of: Callable[[type], type], cls: type) -> Any:
    return object.__new__(twin_of(cls))
