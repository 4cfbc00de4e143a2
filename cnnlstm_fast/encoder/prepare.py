"""prepare(model, args): finds the modules that can be captured, and gives each a runner with the fastest engines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import _native
from ..timing import timed
from . import cache
from .agreement import first_line
from .capture import Captured, capture, flatten
from .choose import SMALL_SHARE, Chosen, choose
from .fingerprint import fingerprint, structure
from .guard import CHANGED, Guard
from .modules import install, uninstall
from .observe import Call, eval_mode, observe, restored
from .options import How
from .plan import Plan
from .reason import CannotCaptureError
from .record import Record
from .regions import with_pytorch_lstms
from .runner import EAGER, Runner, Runs
from .usual import RUNNER, original_forward

BUDGET = 20.0
"""Seconds that ``optimize`` may take to measure, by default."""
SIZES_SECONDS = 2.0
"""So long may it take, whatever is left of the budget, to find which sizes of a module vary: calls of sizes that were
not tried run eager."""
SHARE_SECONDS = 0.02
"""About so long is a module's share of the model's call measured."""
LATE = "its turn came when `budget` was used up: not stored, so that the next process measures it"


@dataclass
class Outcome:
    """What became of a module: the record of the choice, or the reason why it was not captured."""

    record: Record | None = None
    reason: str | None = None
    notes: list[str] = field(default_factory=list)
    key: str | None = None
    """Of the record on disk."""


outcomes: WeakKeyDictionary[nn.Module, Outcome] = WeakKeyDictionary()
"""Of every module that ``prepare`` has tried, for ``explain``."""


def prepare(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: How,
) -> None:
    """Prepares the model for calls in eval mode, from the example's call.

    A module that cannot be captured as a whole is left as it is, and its children are tried. Nothing is changed where
    an engine gains nothing.

    Raises:
        RuntimeError: a named engine runs no part of the model.
    """
    if not _native.available:
        outcomes[model] = Outcome(reason=f"it needs the compiled part: {_native.reason}")
        return
    for module in model.modules():
        outcomes.pop(module, None)
    with eval_mode(model), torch.no_grad():
        done = _prepare_tree(model, args, kwargs, how)
    if how.encoder != "auto" and not done:
        raise RuntimeError(
            f"encoder: {how.encoder!r} runs no part of this model: {outcomes[model].reason}; use 'auto'."
        )


def _prepare_tree(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> bool:
    """Prepares the model or, where it cannot be captured, the modules inside; returns whether any was."""
    return _try(model, (args, kwargs), how) or prepare_children(model, args, kwargs, how)


def prepare_children(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> bool:
    """Prepares the modules inside, but those that have a runner, and what these are inside of."""
    calls: dict[nn.Module, list[Call]] | None = None
    total = 0.0
    done = False
    pending = list(model.children())
    while pending:
        module = pending.pop(0)
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or next(module.parameters(), None) is None:
            continue
        if RUNNER in module.__dict__:
            continue
        if calls is None:
            calls = observe(model, args, kwargs)
            how = replace(how, around=structure(model))
            total = _seconds(model, (args, kwargs))
        whole = all(RUNNER not in part.__dict__ for part in module.modules())
        share = 1.0
        if whole and module in calls and how.encoder == "auto":
            share = min(1.0, len(calls[module]) * _seconds(module, calls[module][0]) / total)
            if share < SMALL_SHARE:
                outcomes[module] = Outcome(reason=f"it takes {share:.1%} of the model's call")
                continue
        if whole and module in calls and _try(module, calls[module][0], replace(how, share=share)):
            done = True
        else:
            pending[:0] = module.children()
    return done


def _seconds(module: nn.Module, call: Call) -> float:
    """Of the fastest of two calls or, where they are short, of more: the first ones meet cold caches."""
    times: list[float] = []
    with restored(module):
        while len(times) < 2 or (len(times) < 10 and sum(times) < SHARE_SECONDS):
            times.append(timed(lambda: original_forward(module, *call)))
    return min(times)


def _try(module: nn.Module, call: Call, how: How) -> bool:
    """Prepares one module; if it cannot be captured, ``outcomes`` says why."""
    try:
        outcomes[module] = _prepare_one(module, *call, how)
    except CannotCaptureError as error:
        outcomes[module] = Outcome(reason=str(error))
        return False
    return True


def _prepare_one(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> Outcome:
    leaves, tensors, _ = flatten(args, kwargs)
    check_kind(module, tensors)
    key = fingerprint(module, leaves, tensors, how.encoder, how.precision, how.around)
    stored = cache.load(key)
    if stored is not None:
        runner = Runner(*stored, structure(module))
        problem = install_checked(module, runner, None, args, kwargs)
        if problem is None:
            return Outcome(runner.record, key=key)
        # the code has changed in a way that the fingerprint does not cover, or an engine fails now
    late = time.monotonic() > how.deadline
    chosen = measure(module, args, kwargs, how)
    unstored = LATE if late else cache.store(key, chosen.plan, chosen.record)
    runner = Runner(chosen.plan, chosen.record, structure(module))
    problem = install_checked(module, runner, chosen.runs, args, kwargs)
    if problem is not None:
        raise CannotCaptureError(problem)
    return Outcome(runner.record, notes=[unstored] if unstored else [], key=None if unstored else key)


def check_kind(module: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Raises CannotCaptureError for what no engine runs."""
    if isinstance(module, torch.jit.ScriptModule):
        raise CannotCaptureError("it is a ScriptModule")
    other = next((t.device.type for t in (*tensors, *module.parameters()) if t.device.type != "cpu"), None)
    if other is not None:
        raise CannotCaptureError(f"it is on {other}, for which there is no engine yet")


def measure(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> Chosen:
    """Captures the module and measures the engines.

    Raises:
        CannotCaptureError: why it cannot be captured.
    """
    how.progress("capturing")
    with restored(module):
        _check_attributes(module, args, kwargs)
        captured = capture(module, args, kwargs, max(how.deadline, time.monotonic() + SIZES_SECONDS))
        plan = Plan.of(captured)
        if not plan.regions:
            raise CannotCaptureError("nothing in it is worth an engine")
        return choose(plan, _whole(captured), module, args, kwargs, how)


def _whole(captured: Captured) -> Plan | None:
    """The module with its LSTMs as one region, if it has any and all are such as other engines have, too."""
    found = with_pytorch_lstms(captured)
    plan = None if found is None else Plan.of(found)
    return plan if plan is not None and plan.is_one_region else None


def _check_attributes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    guard = Guard(module)
    original_forward(module, args, kwargs)
    if guard.check() == CHANGED:
        raise CannotCaptureError("its forward changes its own attributes")


def install_checked(
    module: nn.Module,
    runner: Runner,
    runs: Runs | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str | None:
    """Gives the module its runner, unless this gains nothing; returns None, or why the module stays as it was."""
    if not runner.record.gains:
        uninstall(module)
        return None
    install(module, runner)
    try:
        runner.bind(module, runs)
        with restored(module):
            found = runner(module, args, kwargs)  # the first call of a kind is compared with the module's own
        problem = None if found is not EAGER else "its results by the engines differ from its own"
    except Exception as error:  # whatever an engine raises is the reason
        problem = f"an engine failed: {type(error).__name__}: {first_line(error)}"
    if problem is not None:
        uninstall(module)
    return problem
