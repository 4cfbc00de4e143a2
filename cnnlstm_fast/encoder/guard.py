"""Guard: whether a module is still what it was when a region of it was captured, and whether a call is a plain one.

Only for where the native part is available (``_native.available``): without it nothing is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import _native

if _native.available:
    from .._guard import Gate, Snapshot, needs_grad, plain_call
else:

    def Snapshot(*_: object) -> Any:
        raise RuntimeError(_native.reason)

    Gate = needs_grad = plain_call = Snapshot

__all__ = [
    "ADMIT", "CHANGED", "EAGER", "MARKER", "RUN", "SETTLE", "UNCHANGED", "WEIGHTS", "Gate", "Guard", "needs_grad",
    "plain_call",
]  # fmt: skip

UNCHANGED, WEIGHTS, CHANGED = range(3)
"""What ``Guard.check`` returns, in the order of gravity."""

MARKER = object()
"""Stands for a tensor in a pattern of arguments or results."""

RUN, EAGER, SETTLE, ADMIT = range(4)
"""What ``Gate.enter`` returns: the call runs by the engines; it must run eager; the weights or the number of threads
have changed; its shapes have not been seen yet."""


def global_hooks() -> tuple[dict[int, Any], ...]:
    """The dicts of hooks that run in every module."""
    return tuple(
        value
        for name, value in vars(torch_module).items()
        if name.startswith("_global_") and isinstance(value, dict)
    )


_UNREAD = frozenset(
    {
        *("_backward_hooks", "_backward_pre_hooks", "_non_persistent_buffers_set"),
        *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
        *("_state_dict_hooks", "_state_dict_pre_hooks"),
        *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    }
)
"""Entries of a module's ``__dict__`` whose contents do not matter to a call without gradient: only such calls run by
engines. Most are empty dicts, and to read all those of a large model takes longer than what a small one computes."""


class Guard:
    """What a module was when the guard was made, to compare with what it is now.

    It remembers the module and all modules inside, also those that an attribute holds directly or in a dict,
    list or tuple.

    Args:
        module: the root.
        ignored: keys of the modules' ``__dict__`` that may change.

    Raises:
        TypeError: ``module`` is not an nn.Module, or ``ignored`` not a frozenset.

    ``check()`` runs no Python code. It returns

    - ``CHANGED`` (2) if something other than the weights changed: a module's class, or an attribute of one of its
      classes (names that begin with two underscores count only for ``__call__`` and ``__getattr__``); an entry of
      a module's ``__dict__`` (``training`` is one) or an item of a dict, list or set in it (parameters, submodules
      and forward hooks are there; hooks of the backward pass and of the state_dict do not count); a hook for all
      modules; a tensor's shape, dtype, device, layout, class or ``requires_grad``. Objects are compared by
      identity, numbers and strings by value. A tensor that had several names must keep them: if another one
      takes the place of one of them alone, that is CHANGED, too.
    - ``WEIGHTS`` (1) if only tensors have other contents, memory or strides, or another tensor of the same kind
      stands in the place of one.
    - ``UNCHANGED`` (0) otherwise. What was changed and then changed back is unchanged, except for tensors whose
      edits autograd counted.

    Not seen are edits deeper inside (a list in a list, an attribute of an object that is no module, a closure, a
    global variable), of a function's code, and of the order in an OrderedDict. An edit of a tensor's contents is
    seen if autograd counts it. If not (``.data``, NumPy), it is seen where it changes a byte of the sample: a
    tensor of up to 256 bytes as a whole, of a larger one the first 64 bytes, those at one and at two thirds, and
    the last whole cache line. Whatever scales, copies or averages a whole tensor changes them; an edit of a few
    rows may not. Only dense CPU tensors have a sample. A tensor without plain memory (sparse, a wrapper) counts
    as CHANGED after an edit. Edits of inference tensors are not counted, and so only the sample shows them.

    It holds references to all that it compares, also when a module no longer does. A module may hold its guard:
    Python's collector frees both.
    """

    __slots__ = ("_snapshot", "check")

    def __init__(self, module: nn.Module, ignored: frozenset[str] = frozenset()) -> None:
        self._snapshot = Snapshot(module, ignored, _UNREAD, nn.Module, global_hooks())
        self.check: Callable[[], int] = self._snapshot.check

    def gate(
        self,
        module: nn.Module,
        kinds: tuple[tuple[torch.dtype, int], ...],
        threads: int,
        forward: Callable[..., tuple[Tensor, ...]],
        arguments: Any,
        results: Any,
    ) -> Any:
        """All that is asked before a call of the guarded ``module`` runs by engines, built for so many threads.

        Args:
            kinds: the dtype and the rank of each tensor of the captured call, which are on the CPU.
            forward: takes these tensors and returns those of the result, by the engines.
            arguments: (args, kwargs) of the captured call with ``MARKER`` for each tensor.
            results: its result, likewise.
        """
        return Gate(module, self._snapshot, kinds, threads, forward, arguments, results, MARKER)
