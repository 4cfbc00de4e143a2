"""Modules that were captured one by one, and so measured alone: whether their engines are the fastest inside the model.

An engine with threads of its own can win alone and lose there: its idle team lets PyTorch's threads sleep, and each of
the model's other operators has to wake them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import cache
from .agreement import first_line
from .engines import ENGINES, Engine
from .modules import uninstall
from .observe import eval_mode, restored
from .options import How
from .prepare import outcomes
from .record import Candidate, Inside, Record, RegionRecord
from .runner import Runner
from .split import BETTER
from .turns import MEASURE_SECONDS, Assignment, Turns
from .usual import RUNNER

Runners = Mapping[nn.Module, Runner]


def measure_inside(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> None:
    """Times the model's call with the chosen engines, and with the best ones that work by PyTorch's threads in the
    place of those that do not; the faster ones stay. ``explain`` shows both."""
    if how.encoder != "auto" or time.monotonic() > how.deadline:
        return
    with eval_mode(model), torch.no_grad(), restored(model):
        chosen: dict[nn.Module, Runner] = {}
        others: dict[nn.Module, Runner] = {}
        for module in model.modules():
            runner = module.__dict__.get(RUNNER)
            if module is model or not isinstance(runner, Runner) or not _is_open(runner.record):
                continue
            other = _by_pytorch(runner)
            if other is not None and _is_bound(other, module):
                chosen[module], others[module] = runner, other
        if not chosen:
            return
        how.progress("measuring inside the model")
        sets = (chosen, others)
        calls = [Assignment(_call(model, args, kwargs, runners), _engines(runners)) for runners in sets]
        own, pytorch = Turns(calls).medians(MEASURE_SECONDS / 2)
    _place(others if pytorch < BETTER * own else chosen)
    for module, runner in chosen.items():
        engines = [region.engine for region in runner.record.regions]
        record = module.__dict__[RUNNER].record
        record.inside = Inside(engines, own, pytorch)
        if not record.gains:
            uninstall(module)
        outcome = outcomes[module]
        outcome.record = record
        if outcome.key is not None and (unstored := cache.store(outcome.key, runner.plan, record)):
            outcome.notes.append(unstored)


def _is_open(record: Record) -> bool:
    """Whether it has an engine with threads of its own, and was not compared inside the model by an earlier process."""
    return record.inside is None and any(ENGINES[region.engine].own_threads for region in record.regions)


def _by_pytorch(runner: Runner) -> Runner | None:
    """The runner with the fastest engines that work by PyTorch's threads, if each region has one."""
    regions = [_region_by_pytorch(region) for region in runner.record.regions]
    found = [region for region in regions if region is not None]
    if len(found) < len(regions):
        return None
    other = runner.record.other
    if other is not None and any(ENGINES[name].own_threads for name in other.engines):
        other = None
    # alone, these were not timed together
    record = replace(runner.record, regions=found, other=other, fast=None)
    return type(runner)(runner.plan, record, runner.structure)


def _region_by_pytorch(region: RegionRecord) -> RegionRecord | None:
    def seconds(candidate: Candidate) -> float:
        assert candidate.seconds is not None
        return candidate.seconds

    measured = [c for c in region.candidates if c.seconds is not None and _is_quick(ENGINES[c.engine])]
    return replace(region, engine=min(measured, key=seconds).engine) if measured else None


def _is_quick(engine: Engine) -> bool:
    """Whether it works by PyTorch's threads, and needs no compiler, which would take its time again."""
    return not engine.own_threads and not engine.setup_seconds


def _is_bound(runner: Runner, module: nn.Module) -> bool:
    try:
        runner.bind(module)
    except Exception as error:  # of an engine; the others stay
        outcomes[module].notes.append(f"not compared inside the model: {first_line(error)}")
        return False
    return True


def _place(runners: Runners) -> None:
    for module, runner in runners.items():
        module.__dict__[RUNNER] = runner


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], runners: Runners) -> Any:
    def call() -> None:
        _place(runners)
        model(*args, **kwargs)

    return call


def _engines(runners: Runners) -> dict[int, str]:
    names = [region.engine for runner in runners.values() for region in runner.record.regions]
    return dict(enumerate(names))
