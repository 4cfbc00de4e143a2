"""Calls of a model that its user has not made: what they change in it is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .usual import RUNNER

Call = tuple[tuple[Any, ...], dict[str, Any]]


def observe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[nn.Module, list[Call]]:
    """Runs the model once and returns the calls of every module inside."""
    calls: dict[nn.Module, list[Call]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, []).append((args, kwargs))

    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in model.modules()]
    try:
        with restored(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


class Before:
    """What calls of a model may change in it, and PyTorch's generator of random numbers, to return to."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = {m: dict(m.__dict__) for m in model.modules()}
        self._buffers = {t: (t._version, t.clone()) for t in model.buffers() if not t.is_inference()}
        self._random = torch.get_rng_state()

    def restore(self) -> None:
        torch.set_rng_state(self._random)
        for module, before in self._attributes.items():
            for key in module.__dict__.keys() - before.keys() - {RUNNER}:
                del module.__dict__[key]
            module.__dict__.update({k: v for k, v in before.items() if k != RUNNER})
        with torch.no_grad():
            for tensor, (version, value) in self._buffers.items():
                # a normalisation edits its statistics without counting that
                if tensor._version != version or not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Undoes what calls of the model change: the user has not made these calls."""
    before = Before(model)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and afterwards as they were."""
    training = [m for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
