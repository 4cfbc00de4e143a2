"""Deferred: stands in a runner's place until the first call that can be captured, which it prepares the module by."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import _native
from ..recurrent.class_swap import is_fast
from . import guard as guards
from .agreement import first_line
from .capture import flatten, has_hooks
from .fold import fold_loops
from .modules import install, uninstall
from .options import How
from .prepare import Outcome, outcomes, prepare
from .progress import progress_bar
from .record import Record
from .runner import EAGER, no_result
from .usual import RUNNER, original_forward


@dataclass(frozen=True)
class Deferred:
    """What ``prepare`` is to be called with, once there is a call."""

    encoder: str
    precision: str | None
    budget: float

    quick = staticmethod(no_result)

    @property
    def record(self) -> Record:
        """A runner's: of no region yet."""
        return Record([], self.precision)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the call by the module's own forward, after which the module is prepared; or ``EAGER`` where
        the call is none to capture."""
        if not _to_capture(module, flatten(args, kwargs)[1]):
            return EAGER
        parameters = [(p, p._version) for p in module.parameters() if not p.is_inference()]
        result = original_forward(module, args, kwargs)
        if module.__dict__.pop(RUNNER, None) is not self:
            return result  # another thread prepares it
        uninstall(module)
        if any(p._version != version for p, version in parameters):
            outcomes[module] = Outcome(reason="its forward edits Parameters in place")
        else:
            self._prepare(module, args, kwargs)
        return result

    def _prepare(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Leaves the module as it is where that fails: the user's call has its result."""
        try:
            with torch.inference_mode(False), torch.no_grad(), progress_bar() as progress:
                # the module runs again and again here, and may edit what it is given
                args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
                how = How(self.encoder, self.precision, time.monotonic() + self.budget, progress)
                prepare(module, args, kwargs, how)
                fold_loops(module, args, kwargs, how)
        except Exception as error:
            outcomes[module] = Outcome(reason=first_line(error))
            warnings.warn(f"cnnlstm_fast: {first_line(error)} The model runs as before.", stacklevel=5)


def _to_capture(module: nn.Module, tensors: tuple[Tensor, ...]) -> bool:
    """Whether it is a plain call in eval mode, without gradient, of a module without hooks: those would run more often
    than the user calls the module."""
    return (
        not module.training
        and guards.plain_call(tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *module.parameters())))
        and not any(m.training for m in module.modules())
        and not (module._forward_hooks or module._forward_pre_hooks or has_hooks(module))
    )


def defer(module: nn.Module, encoder: str, precision: str | None, budget: float) -> None:
    """Has the module prepared by its first plain call in eval mode, without gradient and without hooks.

    Raises:
        RuntimeError: the module is of a kind whose calls cannot be waited for.
    """
    if not _native.available:
        outcomes[module] = Outcome(reason=f"it needs the compiled part: {_native.reason}")
    elif is_fast(module) or isinstance(module, torch.jit.ScriptModule):
        kind = "a ScriptModule" if isinstance(module, torch.jit.ScriptModule) else "an LSTM itself"
        raise RuntimeError(f"encoder: {encoder!r} runs no part of this model: it is {kind}.")
    else:
        install(module, Deferred(encoder, precision, budget))
