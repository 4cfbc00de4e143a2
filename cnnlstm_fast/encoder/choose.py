"""The choice of engines by measurement, on the user's input, inside the whole model."""

from __future__ import annotations

import math
import operator
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..timing import interleave
from ..timing import timed as timer
from .agreement import first_line
from .capture import CannotCaptureError, flatten
from .engines import ENGINES, Engine, Options, Run
from .engines.check import check, forget
from .plan import Plan
from .record import Candidate, Record, RegionRecord
from .region import Region
from .regions import build_region, with_ranks
from .runner import idle_team, top_function
from .usual import original_forward, same_results, tensors_of

BETTER = 0.97
"""An engine is preferred to one before it in the table if its time is at most this share of that one's."""
MEASURE_SECONDS = 3.0
"""For all rounds together; at least ``MIN_ROUNDS`` rounds."""
MIN_ROUNDS = 3
WARM_UP_SECONDS = 5e-3
"""Before each timed call: PyTorch's threads spin for 4 ms after the last parallel region of another candidate."""
LONG_CALL = 0.1
"""Seconds of a call on which cold caches and spinning threads have no visible effect."""


@dataclass
class Chosen:
    plan: Plan
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


@dataclass(frozen=True)
class _Call:
    """The example's call."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Split:
    """A plan with the engines that can run its regions."""

    plan: Plan
    options: Options
    trials: list[_Trial]

    def chosen(self, engines: Mapping[int, str]) -> Chosen:
        for k, name in engines.items():
            self.trials[k].record.engine = name
        records = [trial.record for trial in self.trials]
        record = Record(records, self.options.precision, threads=self.options.threads)
        return Chosen(self.plan, record, {k: self.trials[k].runs[name] for k, name in engines.items()})


Progress = Callable[[str], Any]


def choose(
    plan: Plan,
    whole: Plan | None,
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
        plan: the module cut at its LSTMs.
        whole: the module with its LSTMs as one region, for engines that have an LSTM of their own.
        encoder: "auto" or the name of an engine, which then runs every region that it can.
        deadline: by ``time.monotonic``; a compiler that would take longer is left out.

    Raises:
        CannotCaptureError: the plan's results differ from those of the module.
        RuntimeError: the named engine runs no region.
    """
    call = _Call(module, args, kwargs, flatten(args, kwargs)[1])
    threads = torch.get_num_threads()
    with torch.no_grad():
        parts = _Split(plan, Options(threads, precision, alone=plan.alone), _record_inputs(plan, call))
        if encoder != "auto":
            _build(parts.trials, dict.fromkeys(("eager", encoder)), parts.options, math.inf, progress)
            return _insist(parts, encoder)
        _build(parts.trials, ENGINES, parts.options, deadline, progress)
        problem = None
        splits = [parts]
        if whole is not None:
            try:
                splits.append(
                    _Split(whole, Options(threads, precision, alone=True), _record_inputs(whole, call))
                )
            except Exception as error:  # of PyTorch's LSTM, or of its results; the reason, for explain
                problem = Candidate("PyTorch's LSTM", reason=first_line(error))
        for split in splits[1:]:
            for trial in split.trials:  # its inputs are the module's
                trial.region = replace(trial.region, conditions=split.plan.conditions)
            own_lstm = [name for name, engine in ENGINES.items() if engine.own_lstm]
            _build(split.trials, own_lstm, split.options, deadline, progress)
        progress("measuring")
        chosen = _measure(splits, call)
        if problem is not None:
            chosen.record.whole, chosen.record.parts = [problem], chosen.record.fast
        return chosen


def _record_inputs(plan: Plan, call: _Call) -> list[_Trial]:
    """Runs the plan operator by operator, and keeps what each region is given."""
    weights = plan.tensors_of(call.module)
    regions = [build_region(str(k), graph, weights) for k, graph in enumerate(plan.regions)]
    given: dict[int, tuple[Tensor, ...]] = {}

    def recorder(k: int) -> Run:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given[k] = inputs
            return regions[k].module(*inputs)

        return run

    recorders = {k: recorder(k) for k in range(len(regions))}
    found = top_function(plan, call.module, weights, recorders)(*call.tensors)
    expected = tensors_of(original_forward(call.module, call.args, call.kwargs))
    if not same_results(found, expected, None, call.module, call.args, call.kwargs):
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
    trials: Iterable[_Trial],
    names: Iterable[str],
    options: Options,
    deadline: float,
    progress: Progress,
) -> None:
    """Builds those engines for each region, and checks what they compute."""
    for trial in trials:
        for name in names:
            engine = ENGINES[name]
            found = Candidate(name)
            trial.record.candidates.append(found)
            found.reason = engine.missing() or engine.supports(trial.region, options)
            if found.reason is None and _too_long(engine, trial, deadline):
                found.reason = "not tried: it would take longer than what was left of `budget`"
            if found.reason is not None:
                continue
            progress(f"building {engine.title}")
            begun = time.perf_counter()
            try:
                run = engine.build(trial.region, trial.inputs, options)
                found.setup = time.perf_counter() - begun
                if name != "eager":
                    check(trial.region, run, trial.inputs, options)
            except Exception as error:  # the reason, for explain
                found.reason = f"{type(error).__name__}: {first_line(error)}"
                continue
            trial.runs[name] = run
        forget()


def _too_long(engine: Engine, trial: _Trial, deadline: float) -> bool:
    setup = engine.setup_seconds * trial.record.operators
    left = deadline - time.monotonic()
    return (setup > 0.0 and setup + MEASURE_SECONDS * 2 > left) or (engine.modules != () and left < 0.0)


def _insist(split: _Split, encoder: str) -> Chosen:
    if not any(encoder in trial.runs for trial in split.trials):
        raise RuntimeError(
            f"encoder: {encoder!r} runs no part of this model: {split.trials[0].candidate(encoder).reason}; use 'auto'."
        )
    return split.chosen({k: encoder if encoder in t.runs else "eager" for k, t in enumerate(split.trials)})


class _Timed:
    """A region's engine that can keep the time of each call."""

    def __init__(self, run: Run, times: list[float]) -> None:
        self._run, self._times = run, times
        self.keeps = False

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        start = time.perf_counter()
        found = self._run(*inputs)
        if self.keeps:
            self._times.append(time.perf_counter() - start)
        return found


@dataclass(frozen=True)
class _Assignment:
    """A call of the model with these engines for its regions, by number."""

    call: Callable[[], Any]
    engines: Mapping[int, str] = field(default_factory=dict)
    timed: tuple[_Timed, ...] = ()


class _Turns:
    """Times assignments in turns. A turn begins with the idle team that the assignment would have, or none, and with
    calls that are not timed: the other candidates have left their weights in the caches and their threads awake."""

    def __init__(self, assignments: Sequence[_Assignment]) -> None:
        self._assignments = {str(k): assignment for k, assignment in enumerate(assignments)}
        self._took: dict[str, float] = {}
        self._team: Any = None

    def medians(self, seconds: float) -> list[float]:
        """Of each assignment's times."""
        calls = {label: assignment.call for label, assignment in self._assignments.items()}
        self._took = {label: timer(call) for label, call in calls.items()}
        rounds = MIN_ROUNDS if MIN_ROUNDS * sum(self._took.values()) < seconds else 1
        times = interleave(calls, seconds, min_rounds=rounds, before=self._warm_up)
        return [statistics.median(taken) for taken in times.values()]

    def _warm_up(self, label: str) -> None:
        assignment = self._assignments[label]
        engines = assignment.engines.values()
        if not any(ENGINES[name].own_threads for name in engines):
            self._team = None
        elif self._team is None:
            self._team = idle_team(engines)
        for timed in assignment.timed:
            timed.keeps = False
        if self._took[label] < LONG_CALL:
            end = time.perf_counter() + WARM_UP_SECONDS
            assignment.call()
            while time.perf_counter() < end:
                assignment.call()
        for timed in assignment.timed:
            timed.keeps = True


def _measure(splits: Sequence[_Split], call: _Call) -> Chosen:
    """Every engine for all regions at once, then the best of each region together, against the module's own forward."""
    usual = _Assignment(lambda: original_forward(call.module, call.args, call.kwargs))
    uniform = [
        (split, engines, _assignment(split, engines, name, call))
        for split in splits
        for name, engines in _uniform(split)
    ]
    medians = _Turns([usual, *(assignment for *_, assignment in uniform)]).medians(MEASURE_SECONDS)[1:]
    finalists: list[tuple[_Split, dict[int, str]]] = []
    for split in splits:
        own = [
            (median, engines)
            for median, (of, engines, _) in zip(medians, uniform, strict=True)
            if of is split
        ]
        if own:
            best = min(own, key=operator.itemgetter(0))[1]
            mixed = {k: _fastest(trial) for k, trial in enumerate(split.trials)}
            finalists += [(split, engines) for engines in ([best] if best == mixed else [best, mixed])]
    last = [_assignment(split, engines, "last", call) for split, engines in finalists]
    usual_s, *taken = _Turns([usual, *last]).medians(MEASURE_SECONDS / 2)
    winner = min(range(len(finalists)), key=taken.__getitem__)
    split, engines = finalists[winner]
    chosen = split.chosen(engines)
    chosen.record.eager, chosen.record.fast = usual_s, taken[winner]
    if len(splits) > 1:
        chosen.record.whole = splits[1].trials[0].record.candidates
        chosen.record.parts = min(s for s, (of, _) in zip(taken, finalists, strict=True) if of is splits[0])
    return chosen


def _uniform(split: _Split) -> Iterator[tuple[str, dict[int, str]]]:
    """Each engine for all regions; where it does not run one, one that does."""

    def first_of(trial: _Trial, name: str) -> str:
        return name if name in trial.runs else next(n for n in ("onednn", "eager") if n in trial.runs)

    for name in ENGINES:
        if any(name in trial.runs for trial in split.trials):
            yield name, {k: first_of(trial, name) for k, trial in enumerate(split.trials)}


def _assignment(split: _Split, engines: Mapping[int, str], label: str, call: _Call) -> _Assignment:
    """The times of its regions are kept under the label."""
    runs = {
        k: _Timed(split.trials[k].runs[name], split.trials[k].times.setdefault(label, []))
        for k, name in engines.items()
    }
    weights = split.plan.tensors_of(call.module)
    forward = top_function(split.plan, call.module, weights, runs, split.options.precision)
    return _Assignment(lambda: forward(*call.tensors), engines, tuple(runs.values()))


def _fastest(trial: _Trial) -> str:
    """The region's fastest engine, an earlier one of the table where they are close."""
    best: Candidate | None = None
    for candidate in trial.record.candidates:
        if candidate.engine not in trial.runs:
            continue
        candidate.seconds = statistics.median(trial.times[candidate.engine])
        if best is None or best.seconds is None or candidate.seconds < BETTER * best.seconds:
            best = candidate
    assert best is not None
    return best.engine
