"""Guard: whether a module is still what it was when a region of it was captured, and whether a call is a plain one.

Only for where the native part is available (``_native.available``): without it nothing is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from .. import _native

UNCHANGED, WEIGHTS, CHANGED = range(3)
"""What ``Guard.check`` returns, in the order of gravity."""

_guard: ModuleType | None = None
if _native.available:
    from .. import _guard  # type: ignore[no-redef]


def _global_hooks() -> tuple[dict[int, Any], ...]:
    """The dicts of hooks that run in every module."""
    return tuple(
        value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)
    )


class Guard:
    """What a module was when the guard was made, to compare with what it is now.

    It remembers the module and all modules inside, also those that an attribute holds directly or in a dict, list or
    tuple.

    Args:
        module: the root.
        ignored: keys of the modules' ``__dict__`` that may change.

    Raises:
        TypeError: ``module`` is not an nn.Module, or ``ignored`` not a frozenset.

    ``check()`` returns

    - ``CHANGED`` (2) if something other than the weights changed: a module's class, or an attribute of one of its
      classes (names that begin with two underscores count only for ``__call__`` and ``__getattr__``); an entry of a
      module's ``__dict__`` (``training`` is one of them) or an item of a dict, list or set in it (parameters, submodules
      and hooks are there); a hook for all modules; shape, dtype, device, layout, class or ``requires_grad`` of a tensor.
      Objects are compared by identity, numbers and strings by value. Also: one tensor that had several names has them
      no longer.
    - ``WEIGHTS`` (1) if only tensors have other contents, memory or strides, or another tensor of the same kind stands
      in the place of one.
    - ``UNCHANGED`` (0) otherwise.

    Once changed, it stays so until what changed is undone; make a new guard after a new capture. A tensor that was edited
    cannot become UNCHANGED again.

    Not seen are: edits deeper inside (a list in a list, an attribute of an object that is no module, a closure, a global
    variable), of a function's code, or of the order in an OrderedDict. An edit of a tensor's contents is seen if autograd
    counts it. If not (``.data``, NumPy, a view of another tensor's memory), it is seen where it changes a byte of the
    sample: tensors of up to 256 bytes as a whole, of a larger one the first 64 bytes, the last, and those at one and at
    two thirds. Whatever scales, copies or averages a whole tensor changes them; an edit of a few rows may not. Only dense
    CPU tensors have a sample. Tensors without plain memory (sparse ones, wrappers) count as CHANGED after an edit, and
    edits of inference tensors, which autograd does not count, are seen in the sample alone.

    It holds references to what it compares, the old parameters included. A module may hold its guard: Python's
    collector frees both.
    """

    __slots__ = ("_snapshot", "check")

    def __init__(self, module: nn.Module, ignored: frozenset[str] = frozenset()) -> None:
        if _guard is None:
            raise RuntimeError(_native.reason)
        self._snapshot = _guard.Snapshot(module, ignored, nn.Module, _global_hooks())
        self.check: Callable[[], int] = self._snapshot.check

    @property
    def requires_grad(self) -> bool:
        """Whether one of the tensors required a gradient."""
        return self._snapshot.requires_grad


def plain_call(args: tuple[Any, ...]) -> bool:
    """Whether nothing but the operators themselves takes part in a call with these arguments.

    False under a mode of ``__torch_function__`` (a default device is one) or ``__torch_dispatch__``, a transform of
    ``torch.func``, ``torch.jit.trace``, ``make_fx``, ``torch.export``, autocast (of any device) or a level of forward-mode
    differentiation (in any thread); for a tensor of a subclass, a wrapper, a sparse layout, or with a lazy conjugation or
    negation; for an object that is no tensor, number, string, None, or list, tuple or dict of them (at most 16 deep). While
    Dynamo traces, ask ``torch.compiler.is_compiling()`` first: it cannot trace this function.
    """
    return _guard.plain_call(args)  # type: ignore[union-attr]


def needs_grad(args: tuple[Any, ...]) -> bool:
    """Whether gradients are recorded and a tensor among the arguments (in lists, tuples and dicts, too) requires one."""
    return _guard.needs_grad(args)  # type: ignore[union-attr]
