"""prepare(model, args): finds the modules that can be captured, and gives each a runner with the fastest engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import _native
from . import cache
from .agreement import agree, first_line
from .capture import CannotCaptureError, capture, flatten
from .choose import Progress, choose
from .engines import Run
from .fingerprint import fingerprint, structure
from .guard import CHANGED, Guard
from .modules import install, uninstall
from .plan import Plan
from .record import Record
from .runner import EAGER, RUNNER, Runner, original_forward

BUDGET = 20.0
"""Seconds that ``optimize`` may take to measure, by default."""


@dataclass
class Outcome:
    """What became of a module: the record of the choice, or the reason why it was not captured."""

    record: Record | None = None
    reason: str | None = None
    notes: list[str] = field(default_factory=list)


outcomes: WeakKeyDictionary[nn.Module, Outcome] = WeakKeyDictionary()
"""Of every module that ``prepare`` has tried, for ``explain``."""


def prepare(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    encoder: str,
    precision: str | None,
    budget: float,
    progress: Progress,
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
    how = _How(encoder, precision, time.monotonic() + budget, progress)
    with _eval_mode(model), torch.no_grad():
        done = _prepare_tree(model, args, kwargs, how)
    if encoder != "auto" and not done:
        raise RuntimeError(
            f"encoder: {encoder!r} runs no part of this model: {outcomes[model].reason}; use 'auto'."
        )


@dataclass(frozen=True)
class _How:
    encoder: str
    precision: str | None
    deadline: float
    progress: Progress


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _prepare_tree(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: _How) -> bool:
    """Prepares the model or, where it cannot be captured, the modules inside; returns whether any was."""
    if _try(model, (args, kwargs), how):
        return True
    calls: dict[nn.Module, list[Call]] | None = None
    done = False
    pending = list(model.children())
    while pending:
        module = pending.pop(0)
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or next(module.parameters(), None) is None:
            continue
        calls = _observe(model, args, kwargs) if calls is None else calls
        if module in calls and _try(module, calls[module][0], how):
            done = True
        else:
            pending[:0] = module.children()
    return done


def _try(module: nn.Module, call: Call, how: _How) -> bool:
    """Prepares one module; if it cannot be captured, ``outcomes`` says why."""
    try:
        outcomes[module] = _prepare_one(module, *call, how)
    except CannotCaptureError as error:
        outcomes[module] = Outcome(reason=str(error))
        return False
    return True


def _prepare_one(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: _How) -> Outcome:
    if isinstance(module, torch.jit.ScriptModule):
        raise CannotCaptureError("it is a ScriptModule")
    leaves, tensors, _ = flatten(args, kwargs)
    other = next((t.device.type for t in (*tensors, *module.parameters()) if t.device.type != "cpu"), None)
    if other is not None:
        raise CannotCaptureError(f"it is on {other}, for which there is no engine yet")
    key = fingerprint(module, leaves, tensors, how.encoder, how.precision)
    stored = cache.load(key)
    if stored is not None:
        runner = Runner(*stored, structure(module))
        problem = _install(module, runner, None, args, kwargs)
        if problem is None:
            return Outcome(runner.record)
        # the code has changed in a way that the fingerprint does not cover, or an engine fails now
    how.progress("capturing")
    with _restored(module):
        _check_attributes(module, args, kwargs)
        plan = Plan.of(capture(module, args, kwargs, how.deadline))
        if not plan.regions:
            raise CannotCaptureError("nothing in it is worth an engine")
        chosen = choose(plan, module, args, kwargs, how.encoder, how.precision, how.deadline, how.progress)
    unstored = cache.store(key, plan, chosen.record)
    runner = Runner(plan, chosen.record, structure(module))
    problem = _install(module, runner, chosen.runs, args, kwargs)
    if problem is not None:
        raise CannotCaptureError(problem)
    return Outcome(runner.record, notes=[unstored] if unstored else [])


def _check_attributes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    guard = Guard(module)
    original_forward(module, args, kwargs)
    if guard.check() == CHANGED:
        raise CannotCaptureError("its forward changes its own attributes")


def _install(
    module: nn.Module,
    runner: Runner,
    runs: dict[int, Run] | None,
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
        with _restored(module):
            found = runner(module, args, kwargs)
            expected = original_forward(module, args, kwargs)
        good = found is not EAGER and agree(_tensors(found), _tensors(expected), runner.record.precision)
        problem = None if good else "its results by the engines differ from its own"
    except Exception as error:  # whatever an engine raises is the reason
        problem = f"an engine failed: {type(error).__name__}: {first_line(error)}"
    if problem is not None:
        uninstall(module)
    return problem


def _tensors(result: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(result) if isinstance(v, Tensor)]


def _observe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[nn.Module, list[Call]]:
    """Runs the model once and returns the calls of every module inside."""
    calls: dict[nn.Module, list[Call]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, []).append((args, kwargs))

    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in model.modules()]
    try:
        with _restored(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Undoes what calls of the model change in it, and in PyTorch's generator of random numbers: the user has not made
    these calls."""
    attributes = {m: dict(m.__dict__) for m in model.modules()}
    buffers = {t: (t._version, t.clone()) for t in model.buffers() if not t.is_inference()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, before in attributes.items():
            for key in module.__dict__.keys() - before.keys() - {RUNNER}:
                del module.__dict__[key]
            module.__dict__.update({k: v for k, v in before.items() if k != RUNNER})
        with torch.no_grad():
            for tensor, (version, value) in buffers.items():
                # a normalisation edits its statistics without counting that
                if tensor._version != version or not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and afterwards as they were."""
    training = [m for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
