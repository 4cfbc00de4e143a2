"""fold_loops(model, args): a module that a loop calls for each frame runs on many frames at once, where the example
shows that their results do not depend on each other, and that the whole model is faster."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .. import _native
from ..timing import interleave
from . import cache, frames
from .agreement import agree, first_line
from .capture import TENSOR
from .fingerprint import fingerprint, structure
from .frame_runner import FrameRunner
from .frames import Loop
from .modules import install, uninstall
from .observe import Call, eval_mode, observe, restored
from .options import How
from .plan import Plan
from .prepare import Outcome, check_kind, install_checked, measure, outcomes, prepare_children
from .reason import CannotCaptureError
from .record import ms
from .turns import MEASURE_SECONDS, MIN_ROUNDS
from .usual import RUNNER, original_forward

Calls = dict[nn.Module, list[Call]]


def fold_loops(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> None:
    """Tries it with every module that the prepared model calls several times; ``explain`` shows the times.

    A module around the loop that was captured, with the example's number of frames, is left, and its children are
    prepared instead. All of it is taken back where it gains nothing.
    """
    if how.encoder == "eager" or not _native.available:
        return
    call = tuple(a.clone() if type(a) is Tensor else a for a in args), kwargs  # whole tensors, not the user's
    with eval_mode(model), torch.no_grad():
        prepared = _State(model)
        for module in model.modules():
            uninstall(module)  # an engine would call nothing inside
        calls = observe(model, *call)
        prepared.restore()
        repeated = list(_repeated(model, calls))
        calls = {
            m: calls[m] for pair in repeated for m in pair if m is not None
        }  # without what is in between
        for module, around in repeated:
            before = _State(model)
            try:
                _fold(model, call, module, around, calls, how)
            except (CannotCaptureError, RuntimeError) as error:  # such as a named engine's, for so many rows
                before.restore()
                outcomes[around or module].notes.append(
                    f"{_name(model, module)} is called {len(calls[module])} times, one by one: {first_line(error)}"
                )


class _State:
    """Which modules have a runner and what ``explain`` says of them, to return to."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = {m: (m.__dict__.get(RUNNER), outcomes.get(m)) for m in model.modules()}

    def restore(self) -> None:
        for module, (runner, outcome) in self._modules.items():
            if runner is None:
                uninstall(module)
            else:
                install(module, runner)
            outcomes.pop(module, None)
            if outcome is not None:
                outcomes[module] = outcome


def _repeated(model: nn.Module, calls: Calls) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Modules that are called several times: those that ``prepare`` has tried, and the outermost ones inside of a
    captured one, which is the second item."""
    pending: list[tuple[nn.Module, nn.Module | None]] = [(model, None)]
    while pending:
        module, around = pending.pop(0)
        tried = module in outcomes
        captured = tried and outcomes[module].record is not None
        recurrent = isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        if recurrent or next(module.parameters(), None) is None:
            continue
        if (tried or around is not None) and len(calls.get(module, ())) > 1:
            yield module, around
        else:
            inner = around or (module if captured else None)
            pending[:0] = [(child, inner) for child in module.children()]


def _name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, m in model.named_modules() if m is module)


def _fold(
    model: nn.Module, call: Call, module: nn.Module, around: nn.Module | None, calls: Calls, how: How
) -> None:
    """Gives the module a runner of many frames.

    Raises:
        CannotCaptureError: it cannot run on many frames, or the model is not faster; runners may have changed.
    """
    given, loop = _frames_of(calls[module])
    check_kind(module, given)
    if (problem := _dependent(module, given)) is not None:
        raise CannotCaptureError(problem)
    before = _State(model)
    at_once = torch.cat(given)
    key = fingerprint(module, (TENSOR,), (at_once,), how.encoder, how.precision, loop, structure(model))
    stored = _stored(key, module, at_once)
    runner = stored or _measured(module, at_once, loop, how)
    outcomes[module] = Outcome(runner.record, key=key)
    if around is not None:
        uninstall(around)
        outcomes[around] = Outcome(
            reason=f"it calls {_name(model, module)} in a loop, whose calls run as one"
        )
        prepare_children(around, *calls[around][0], how)
    if stored is None:
        how.progress("measuring a loop")
        loop.looped, loop.folded = _times(model, call, before, _State(model))
        unstored = cache.store(key, runner.plan, runner.record)
        outcomes[module].notes += [unstored] if unstored else []
        if not runner.folds:
            raise CannotCaptureError(runner.notes[-1])
        _check_gain(loop)


def _check_gain(loop: Loop) -> None:
    if not loop.gains:
        assert loop.looped is not None and loop.folded is not None
        raise CannotCaptureError(
            f"all at once the model would take {ms(loop.folded)} instead of {ms(loop.looped)}"
        )


def _stored(key: str, module: nn.Module, at_once: Tensor) -> FrameRunner | None:
    """A runner of an earlier process, in its place."""
    stored = cache.load(key)
    if stored is None or stored[1].loop is None:
        return None
    _check_gain(stored[1].loop)
    _clear(module)
    runner = FrameRunner(*stored, structure(module))
    return runner if install_checked(module, runner, None, (at_once,), {}) is None else None


def _clear(module: nn.Module) -> None:
    """The module as it was before ``prepare``."""
    for part in module.modules():
        uninstall(part)
        outcomes.pop(part, None)


def _measured(module: nn.Module, at_once: Tensor, loop: Loop, how: How) -> FrameRunner:
    """A runner with the engines that are fastest for all frames, in its place."""
    if time.monotonic() > how.deadline:
        raise CannotCaptureError("nothing was left of `budget` to try it at once")
    _clear(module)
    chosen = measure(module, (at_once,), {}, how)
    chosen.record.loop = loop
    runner = FrameRunner(chosen.plan, chosen.record, structure(module))
    problem = _mixed(chosen.plan) or install_checked(module, runner, chosen.runs, (at_once,), {})
    if problem is not None:
        raise CannotCaptureError(problem)
    return runner


def _frames_of(calls: Sequence[Call]) -> tuple[list[Tensor], Loop]:
    """The frames of the loop's first run."""
    given = [args[0] for args, kwargs in calls if len(args) == 1 and not kwargs and type(args[0]) is Tensor]
    loop = frames.find(given) if len(given) == len(calls) else None
    if loop is None or not given[0].is_floating_point():
        raise CannotCaptureError("not for all frames of one tensor in order")
    return given[: loop.calls], loop


def _dependent(module: nn.Module, given: Sequence[Tensor]) -> str | None:
    """None, or why the results for several frames at once are not those of each; by the frames, and by random ones."""
    with restored(module):
        for k, inputs in enumerate((given, [torch.randn_like(frame) for frame in given])):
            one_by_one = [_tensors(module, frame) for frame in inputs]
            try:
                at_once = _tensors(module, torch.cat(list(inputs)))
                joined = [torch.cat(parts) for parts in zip(*one_by_one, strict=True)]
            except Exception as error:  # whatever the module raises for so many rows
                return f"{type(error).__name__}: {first_line(error)}"
            if not agree(at_once, joined, None):
                return f"the results for {'random ' if k else ''}frames depend on each other"
            memory = [t.untyped_storage().data_ptr() for t in (inputs[0], *one_by_one[0])]
            if len(set(memory)) < len(memory):
                return "a result shares memory with its argument or another result"
    return None


def _tensors(module: nn.Module, frame: Tensor) -> list[Tensor]:
    leaves = pytree.tree_leaves(original_forward(module, (frame,), {}))
    return [v for v in leaves if isinstance(v, Tensor)]


def _mixed(plan: Plan) -> str | None:
    """None, or why its graph may compute something of several rows together, such as their maximum, which changes
    results for some numbers only: every tensor in it must have the rows among its dimensions."""
    rows = next(node for node in plan.top.nodes if node.op == "placeholder").meta["spec"].shape[0]
    if isinstance(rows, int):
        return f"it was captured for {rows} rows alone"
    name = re.compile(rf"\b{re.escape(rows)}\b")
    for graph in (plan.top, *plan.regions):
        of_rows: set[fx.Node] = set()
        for node in graph.nodes:
            spec = node.meta.get("spec")
            has_rows = spec is not None and any(name.search(str(size)) for size in spec.shape)
            if has_rows or of_rows.intersection(node.all_input_nodes):
                of_rows.add(node)
            if node in of_rows and spec is not None and not has_rows:
                return f"{node.target} may compute something of all frames together"
    return None


def _times(model: nn.Module, call: Call, before: _State, folded: _State) -> tuple[float, float]:
    """Seconds of the model's call in both states, of which the second one stays."""
    states = {"before": before, "folded": folded}

    def run() -> None:
        model(*call[0], **call[1])

    def turn(name: str) -> None:
        states[name].restore()
        run()  # not timed: the other state has left its weights in the caches

    with restored(model):
        times = interleave(
            dict.fromkeys(states, run), MEASURE_SECONDS / 2, min_rounds=MIN_ROUNDS, before=turn
        )
    folded.restore()
    return statistics.median(times["before"]), statistics.median(times["folded"])
