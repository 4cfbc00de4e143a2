"""Training steps by faster operators, where a measurement has found these to be faster."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import _native
from ..contract import FLOOR, bound, is_gradient, norm, relative_error
from ..recurrent.class_swap import is_fast
from ..timing import interleave, paired_ratio
from . import cache
from . import guard as guards
from .agreement import agree, first_line
from .capture import flatten, has_hooks
from .fingerprint import fingerprint
from .modules import has_runner, install_trainer
from .observe import Before
from .options import How
from .record import Candidate
from .rewrites import REWRITES, rules_of, run_rewritten
from .usual import original_forward

EAGER = "eager"
BETTER = 1.03
"""Rewritten operators are used if the usual ones take at least so many times their time."""
MEASURE_SECONDS = 3.0
STEPS = 12
"""About so many steps does a measurement take, if it is short."""
USABLE_REFERENCE = 1e-3
"""PyTorch's own error above which a float64 run is no reference, such as one that has drawn other random numbers."""
MOST_SHAPES = 1024
"""So many sizes of calls are remembered."""


@dataclass
class TrainingRecord:
    """What was measured of a training step: forward and backward of the example's call."""

    engine: str = EAGER
    candidates: list[Candidate] = field(default_factory=list)
    threads: int = 0
    cached: bool = False
    """Whether it was read from the disk."""

    @staticmethod
    def from_json(data: dict[str, Any]) -> TrainingRecord:
        """The record of ``asdict``.

        Raises:
            KeyError, TypeError, ValueError: the data is not that of a record.
        """
        record = TrainingRecord(**{**data, "candidates": [Candidate(**c) for c in data["candidates"]]})
        if record.engine not in [EAGER, *_names()]:
            raise ValueError(f"there is no {record.engine!r}")
        return record


TRAINING_HINT = (
    "training: not measured; optimize(model.train(), example_inputs) measures whether a step with other operators of "
    "PyTorch is faster, and uses them"
)
trainings: WeakKeyDictionary[nn.Module, TrainingRecord | str] = WeakKeyDictionary()
"""Of every model whose training was to be measured: what was found, or why it was not measured. For ``explain``."""


class Trainer:
    """Runs a module's own forward with rewritten operators, in train() mode where gradients are recorded.

    All else of the call is the module's: Parameters, buffers, hooks, random numbers. Sizes at which the forward fails
    with another layout, such as by a ``view``, run as usual.
    """

    def __init__(self, record: TrainingRecord) -> None:
        self.record = record
        self._rules = rules_of(record.engine)
        self._works: dict[tuple[torch.Size, ...], bool] = {}

    def __call__(
        self, forward: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        usual = not (module.training and torch.is_grad_enabled() and guards.plain_call((args, kwargs)))
        if usual or torch.get_num_threads() != self.record.threads:
            return forward(module, *args, **kwargs)
        shapes = tuple([t.shape for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)])
        call = partial(forward, module, *args, **kwargs)
        works = self._works.get(shapes)
        if works is None:
            return self._first(shapes, module, call)
        return run_rewritten(self._rules, call) if works else call()

    def _first(self, shapes: tuple[torch.Size, ...], module: nn.Module, call: Callable[[], Any]) -> Any:
        """The first call of these sizes: runs as usual if it fails."""
        if len(self._works) >= MOST_SHAPES:
            self._works.clear()
        before = Before(module)
        try:
            found = run_rewritten(self._rules, call)
        except Exception:  # the forward itself, or the other layout: the usual operators decide
            before.restore()
            found = call()
            self._works[shapes] = False
        else:
            self._works[shapes] = True
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Trainer, (self.record,)


def prepare_training(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How) -> None:
    """Gives a model in train() mode the operators that make its training step fastest, if any do."""
    trainings.pop(model, None)
    if not model.training:
        return
    reason = _unfit(model, args, kwargs)
    if reason is not None:
        trainings[model] = reason
        return
    leaves, tensors, _ = flatten(args, kwargs)
    key = fingerprint(model, leaves, tensors, "training")
    record = cache.load_json(key, TrainingRecord.from_json)
    if record is not None:
        record.cached = True
    else:
        how.progress("measuring training")
        try:
            record = _measure(model, args, kwargs, how.deadline)
        except Exception as error:  # whatever a stranger's model raises in training
            trainings[model] = f"it fails: {type(error).__name__}: {first_line(error)}"
            return
        if record is None:
            trainings[model] = "not measured: it would take longer than what was left of `budget`"
            return
        cache.store_json(key, asdict(record))
    trainings[model] = record
    if record.engine != EAGER:
        install_trainer(model, Trainer(record))


def _unfit(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    tensors = [*flatten(args, kwargs)[1], *model.parameters(), *model.buffers()]
    cases = (
        (not _native.available, f"it needs the compiled part: {_native.reason}"),
        (isinstance(model, torch.jit.ScriptModule), "it is a ScriptModule"),
        (is_fast(model) and not has_runner(model), "it is an LSTM itself"),
        (any(t.device.type != "cpu" for t in tensors), "it is not on the CPU"),
        (not any(p.requires_grad for p in model.parameters()), "no parameter requires a gradient"),
        (
            has_hooks(model) or any(p._backward_hooks for p in model.parameters()),
            "it has hooks, which a measurement would call",
        ),
    )
    return next((reason for holds, reason in cases if holds), None)


def _names() -> list[str]:
    return [*REWRITES, "+".join(REWRITES)]


Results = list[tuple[str, Tensor]]


def _measure(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
) -> TrainingRecord | None:
    """Checks and times every candidate; None if there is no time for it."""
    before = Before(model)

    def forward_by(name: str) -> Callable[..., Any]:
        if name == EAGER:
            return lambda *a, **k: original_forward(model, a, k)
        return lambda *a, **k: run_rewritten(rules_of(name), lambda: original_forward(model, a, k))

    def step(name: str) -> Results:
        return _step(forward_by(name), model, args, kwargs)

    def same_start(name: str) -> Results:
        before.restore()
        return step(name)

    try:
        with torch.inference_mode(False), torch.enable_grad():
            same_start(EAGER)
            begun = time.monotonic()
            usual = same_start(EAGER)
            if begun + STEPS * (time.monotonic() - begun) > deadline:
                return None
            before.restore()
            exact = _exact(model, args, kwargs, usual)
            record = TrainingRecord(candidates=[Candidate(EAGER)], threads=torch.get_num_threads())
            for name in _names():
                record.candidates.append(
                    Candidate(name, reason=_problem(partial(same_start, name), usual, exact))
                )
            calls = {c.engine: partial(step, c.engine) for c in record.candidates if c.reason is None}
            times = interleave(calls, min(MEASURE_SECONDS, deadline - time.monotonic()))
    finally:
        before.restore()
    ratios = {name: paired_ratio(times[EAGER], found) for name, found in times.items()}
    for candidate in record.candidates:
        if candidate.reason is None:
            candidate.seconds = torch.tensor(times[candidate.engine]).median().item()
    best = max(ratios, key=lambda name: ratios[name].value)
    if ratios[best].value >= BETTER and ratios[best].low > 1.0:
        record.engine = best
    return record


def _step(
    forward: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Results:
    """One training step with the sum of the squares of all outputs as its loss: outputs, gradients and buffers."""
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad), (args, kwargs)
    )
    outputs = [v for v in pytree.tree_leaves(forward(*args, **kwargs)) if isinstance(v, Tensor)]
    trained: list[tuple[str, Tensor]] = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    trained += [(f"argument {k}", t) for k, t in enumerate(flatten(args, kwargs)[1]) if t.requires_grad]
    squares = [v.square().sum() for v in outputs if v.requires_grad]
    grads = torch.autograd.grad(torch.stack(squares).sum(), [t for _, t in trained], allow_unused=True)
    return [
        *((f"output {k}", v.detach()) for k, v in enumerate(outputs)),
        # Parameters keep their gradients in their own layout
        *(
            (f"gradient of {n}", torch.empty(0) if g is None else g.contiguous())
            for (n, _), g in zip(trained, grads, strict=True)
        ),
        *((f"buffer {n}", b.clone()) for n, b in module.named_buffers()),
    ]


def _exact(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], usual: Results
) -> list[Tensor] | None:
    """The results in float64, with the same random numbers, or None where that gives no reference."""
    try:
        double = copy.deepcopy(model).double()
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs)
        )
        exact = [t for _, t in _step(lambda *a, **k: original_forward(double, a, k), double, args, kwargs)]
        fits = all(
            relative_error(found, reference) <= USABLE_REFERENCE
            for (name, found), reference in zip(usual, exact, strict=True)
            if name.startswith("output ") and found.dtype in FLOOR
        )
    except Exception:  # such as operators with a dtype among their arguments
        return None
    return exact if fits else None


def _problem(run: Callable[[], Results], usual: Results, exact: list[Tensor] | None) -> str | None:
    """None if a candidate's results keep the contract, else why they do not."""
    try:
        results = run()
    except Exception as error:  # the reason, for explain
        return f"{type(error).__name__}: {first_line(error)}"
    of_gradients = [norm(t) for (name, _), t in zip(usual, exact or (), strict=False) if is_gradient(name)]
    total = math.hypot(*of_gradients)
    for k, ((name, found), (_, wanted)) in enumerate(zip(results, usual, strict=True)):
        if _kind(found) != _kind(wanted):
            return f"{name} has another shape, dtype or layout"
        if exact is None or found.dtype not in FLOOR:
            if not agree([found], [wanted], None):
                return f"{name} differs from PyTorch's"
            continue
        scale = total if is_gradient(name) else 0.0
        off, usual_off = (relative_error(t, exact[k], scale) for t in (found, wanted))
        if off > bound(usual_off, found.dtype):
            return f"the error of {name} is {off:.1e} where PyTorch's is {usual_off:.1e}"
    return None


def _kind(t: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and layout: the strides of dimensions of size 1 mean nothing."""
    return t.shape, t.dtype, [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1]
