"""The choice of engines by measurement, on the user's input, inside the whole model."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..contract import FLOOR, bound, relative_error
from ..timing import interleave
from .agreement import agree, first_line
from .capture import CannotCaptureError, flatten
from .engines import ENGINES, Engine, Options, Run
from .plan import Plan
from .record import Candidate, Record, RegionRecord
from .region import Region
from .regions import build_region, with_ranks
from .runner import idle_team, original_forward, top_function

BETTER = 0.97
"""An engine is preferred to one before it in the table if its time is at most this share of that one's."""
MEASURE_SECONDS = 3.0
"""For all rounds together; at least ``MIN_ROUNDS`` rounds."""
MIN_ROUNDS = 3


@dataclass
class Chosen:
    record: Record
    runs: dict[int, Run]
    """The engines that were chosen, built, by the region's number."""


@dataclass
class _Trial:
    """A region with the engines that can run it."""

    region: Region
    inputs: tuple[Tensor, ...]
    record: RegionRecord
    runs: dict[str, Run] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    """Seconds within the model, by the assignment that was measured."""

    def candidate(self, engine: str) -> Candidate:
        return next(c for c in self.record.candidates if c.engine == engine)


Progress = Callable[[str], Any]


def choose(
    plan: Plan,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    encoder: str,
    precision: str | None,
    deadline: float,
    progress: Progress = lambda text: None,
) -> Chosen:
    """Builds the engines, checks their results and measures them.

    Args:
        encoder: "auto" or the name of an engine, which then runs every region that it can.
        deadline: by ``time.monotonic``; a compiler that would take longer is left out.

    Raises:
        CannotCaptureError: the plan's results differ from those of the module.
        RuntimeError: the named engine runs no region.
    """
    options = Options(torch.get_num_threads(), precision)
    _, tensors, _ = flatten(args, kwargs)
    with torch.no_grad():
        trials = _record_inputs(plan, module, args, kwargs, tensors)
        _build(trials, encoder, options, deadline, progress)
        if encoder != "auto":
            return _insist(trials, encoder, options)
        progress("measuring")
        return _measure(trials, options, plan, module, args, kwargs, tensors)


def _record_inputs(
    plan: Plan, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: tuple[Tensor, ...]
) -> list[_Trial]:
    """Runs the plan operator by operator, and keeps what each region is given."""
    weights = plan.tensors_of(module)
    regions = [build_region(str(k), graph, weights) for k, graph in enumerate(plan.regions)]
    given: dict[int, tuple[Tensor, ...]] = {}

    def recorder(k: int) -> Run:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given[k] = inputs
            return regions[k].module(*inputs)

        return run

    found = top_function(plan, module, weights, {k: recorder(k) for k in range(len(regions))})(*tensors)
    expected = [
        v for v in pytree.tree_leaves(original_forward(module, args, kwargs)) if isinstance(v, Tensor)
    ]
    if not agree(found, expected, None):
        raise CannotCaptureError("its graph has other results than the module")
    return [
        _Trial(
            with_ranks(region, [t.shape for t in given[k]]),
            given[k],
            RegionRecord(
                "eager",
                [list(t.shape) for t in given[k]],
                list(region.modules),
                sum(node.op == "call_function" for node in region.module.graph.nodes),
            ),
        )
        for k, region in enumerate(regions)
    ]


def _build(
    trials: Iterable[_Trial], encoder: str, options: Options, deadline: float, progress: Progress
) -> None:
    names = list(ENGINES) if encoder == "auto" else list(dict.fromkeys(("eager", encoder)))
    for name in names:
        engine = ENGINES[name]
        for trial in trials:
            found = Candidate(name)
            trial.record.candidates.append(found)
            found.reason = engine.missing() or engine.supports(trial.region, options)
            if found.reason is None and encoder == "auto" and _too_long(engine, trial, deadline):
                found.reason = "not tried: its compiler would take longer than what was left of `budget`"
            if found.reason is not None:
                continue
            progress(f"building {engine.title}")
            begun = time.perf_counter()
            try:
                run = engine.build(trial.region, trial.inputs, options)
                outputs = run(*trial.inputs)
            except Exception as error:  # the reason, for explain
                found.reason = f"{type(error).__name__}: {first_line(error)}"
                continue
            found.setup = time.perf_counter() - begun
            found.reason = None if name == "eager" else _wrong(trial, outputs, options)
            if found.reason is None:
                trial.runs[name] = run


def _too_long(engine: Engine, trial: _Trial, deadline: float) -> bool:
    seconds = MEASURE_SECONDS * 2 + engine.setup_seconds * trial.record.operators
    return engine.setup_seconds > 0.0 and time.monotonic() + seconds > deadline


def _wrong(trial: _Trial, outputs: tuple[Tensor, ...], options: Options) -> str | None:
    """None if the outputs keep the contract, else by how much they do not."""
    eager = trial.region.module(*trial.inputs)
    try:
        exact = copy.deepcopy(trial.region.module).double()(
            *(t.double() if t.is_floating_point() else t for t in trial.inputs)
        )
    except Exception:  # such as operators with a dtype among their arguments: no reference in float64
        return None if agree(outputs, eager, options.precision) else "its results differ from PyTorch's"
    for found, usual, reference in zip(outputs, eager, exact, strict=True):
        if found.shape != usual.shape or found.dtype != usual.dtype:
            return f"its results are {found.dtype}{tuple(found.shape)} instead of {usual.dtype}{tuple(usual.shape)}"
        if options.precision is not None or found.dtype not in FLOOR:
            if not agree([found], [usual], options.precision):
                return "its results differ from PyTorch's"
            continue
        error, usual_error = relative_error(found, reference), relative_error(usual, reference)
        if error > bound(usual_error, found.dtype):
            return f"its error is {error:.1e} where PyTorch's is {usual_error:.1e}"
    return None


def _insist(trials: list[_Trial], encoder: str, options: Options) -> Chosen:
    for trial in trials:
        trial.record.engine = encoder if encoder in trial.runs else "eager"
    if not any(encoder in trial.runs for trial in trials):
        raise RuntimeError(
            f"encoder: {encoder!r} runs no part of this model: {trials[0].candidate(encoder).reason}; use 'auto'."
        )
    return _chosen(trials, options)


def _chosen(trials: list[_Trial], options: Options) -> Chosen:
    record = Record([trial.record for trial in trials], options.precision, threads=options.threads)
    return Chosen(record, {k: trial.runs[trial.record.engine] for k, trial in enumerate(trials)})


class _Timed:
    """A region's engine that keeps the time of each call."""

    def __init__(self, run: Run, times: list[float]) -> None:
        self._run, self._times = run, times

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        start = time.perf_counter()
        found = self._run(*inputs)
        self._times.append(time.perf_counter() - start)
        return found


class _Turn:
    """Prepares a candidate's turn: its idle team, or none, as it would have it; and a call that is not timed, since the
    other candidates have left their weights in the caches and their threads awake."""

    def __init__(
        self, assignments: Mapping[str, dict[int, str]], calls: Mapping[str, Callable[[], Any]]
    ) -> None:
        self._assignments, self._calls = assignments, calls
        self._team: Any = None

    def __call__(self, label: str) -> None:
        engines = list(self._assignments.get(label, {}).values())
        if not any(ENGINES[name].own_threads for name in engines):
            self._team = None
        elif self._team is None:
            self._team = idle_team(engines)
        self._calls[label]()


def _measure(
    trials: list[_Trial],
    options: Options,
    plan: Plan,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: tuple[Tensor, ...],
) -> Chosen:
    """Every engine for all regions at once, then the best of each region together, against the module's own forward."""
    weights = plan.tensors_of(module)

    def forward_by(assigned: dict[int, str], label: str) -> Callable[[], Any]:
        runs = {
            k: _Timed(trials[k].runs[name], trials[k].times.setdefault(label, []))
            for k, name in assigned.items()
        }
        forward = top_function(plan, module, weights, runs, options.precision)
        return lambda: forward(*tensors)

    def usual() -> Any:
        return original_forward(module, args, kwargs)

    def first_of(trial: _Trial, name: str) -> str:
        return name if name in trial.runs else next(n for n in ("onednn", "eager") if n in trial.runs)

    labels = {
        name: {k: first_of(trial, name) for k, trial in enumerate(trials)}
        for name in ENGINES
        if any(name in trial.runs for trial in trials)
    }
    calls = {"": usual, **{name: forward_by(assigned, name) for name, assigned in labels.items()}}
    times = interleave(calls, MEASURE_SECONDS, min_rounds=MIN_ROUNDS, before=_Turn(labels, calls))
    for trial in trials:
        _pick(trial)
    mixed = {k: trial.record.engine for k, trial in enumerate(trials)}
    finalists = {name: assigned for name, assigned in labels.items() if assigned == mixed}
    if not finalists:
        best = min(labels, key=lambda name: statistics.median(times[name]))
        finalists = {best: labels[best], "mixed": mixed}
    calls = {
        "": usual,
        **{name: forward_by(assigned, f"{name} again") for name, assigned in finalists.items()},
    }
    again = interleave(calls, MEASURE_SECONDS / 2, min_rounds=MIN_ROUNDS, before=_Turn(finalists, calls))
    winner = min(finalists, key=lambda name: statistics.median(again[name]))
    for k, trial in enumerate(trials):
        trial.record.engine = finalists[winner][k]
    chosen = _chosen(trials, options)
    chosen.record.eager = statistics.median(again[""])
    chosen.record.fast = statistics.median(again[winner])
    return chosen


def _pick(trial: _Trial) -> None:
    """Sets the region's engine to the fastest one, an earlier one of the table where they are close."""
    for name in trial.runs:
        if trial.times.get(name):
            # two calls a turn, the first of which is not to be timed
            trial.candidate(name).seconds = statistics.median(trial.times[name][1::2])
    best = "eager"
    for candidate in trial.record.candidates:
        current = trial.candidate(best).seconds
        if candidate.seconds is not None and (current is None or candidate.seconds < BETTER * current):
            best = candidate.engine
    trial.record.engine = best
