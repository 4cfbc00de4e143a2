"""Modules with a runner: their class is swapped for one whose forward asks the runner first."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..recurrent.class_swap import FastClass, swap_class
from .runner import EAGER, TRAINER
from .usual import RUNNER


class RunnerClass(FastClass):
    """Mixin of the classes with a runner. The original class is the first base, so that all else is inherited."""


def runner_class(cls: Any) -> type:
    """The class with a runner of a module's class."""
    if issubclass(cls, FastClass):
        return cls
    subclasses: list[type] = cls.__subclasses__()
    for known in subclasses:
        if issubclass(known, RunnerClass) and known.__dict__.get("original_class") is cls:
            return known

    @functools.wraps(cls.forward)  # the signature is asked for by exporters and trainers
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        runner = self.__dict__.get(RUNNER)
        if runner is not None and not torch.compiler.is_compiling():
            result = runner(self, args, kwargs)
            if result is not EAGER:
                return result
        trainer = self.__dict__.get(TRAINER)
        if trainer is not None and not torch.compiler.is_compiling():
            return trainer(cls.forward, self, args, kwargs)
        return cls.forward(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        runner = self.__dict__.get(RUNNER)
        if runner is not None and not torch.compiler.is_compiling():
            try:
                result = runner.quick(self, args, kwargs)
            except Exception as error:  # eager decides whether the argument is at fault or the engine
                return runner.failed(self, args, kwargs, error)
            if result is not None:
                return result
        return cls.__call__(self, *args, **kwargs)

    body = {
        "__class__": FastClass.__dict__["__class__"],
        "__reduce_ex__": FastClass.__reduce_ex__,
        "original_class": cls,
        "fast_class_of": staticmethod(runner_class),
        "forward": forward,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    # nn.Module's own adds nothing but hooks, and what was captured has none
    if cls.__call__ is nn.Module.__call__:
        body["__call__"] = call
    return types.new_class(cls.__name__, (cls, RunnerClass), exec_body=lambda space: space.update(body))


def has_runner(module: Any) -> bool:
    return issubclass(type(module), RunnerClass)


def install(module: nn.Module, runner: Callable[..., Any]) -> None:
    """Lets the runner (or a ``Deferred``) run the module's calls. Its guard must be made afterwards, since the class
    changes."""
    _swap(module)
    module.__dict__[RUNNER] = runner


def install_trainer(module: nn.Module, trainer: Callable[..., Any]) -> None:
    """Lets the trainer run the calls that no runner runs."""
    _swap(module)
    module.__dict__[TRAINER] = trainer


def _swap(module: nn.Module) -> None:
    if not has_runner(module):
        swap_class(module, runner_class(type(module)))


def uninstall(module: nn.Module) -> None:
    """Restores the module's own class."""
    if has_runner(module):
        module.__dict__.pop(RUNNER, None)
        module.__dict__.pop(TRAINER, None)
        swap_class(module, type(module).original_class)  # type: ignore[attr-defined]
