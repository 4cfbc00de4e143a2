"""The choice of engines by measurement, on the user's input, inside the whole model."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .agreement import first_line
from .capture import flatten
from .elsewhere import measure_elsewhere
from .engines import ENGINES, Engine, Options, Run
from .engines.check import check, forget
from .options import How
from .plan import Plan
from .reason import CannotCaptureError
from .record import Candidate, Record, RegionRecord
from .regions import build_region, with_ranks
from .runner import Runs, top_function
from .split import ModuleCall, Split, Trial
from .turns import MEASURE_SECONDS, Assignment, Turns
from .usual import original_forward, same_results, tensors_of


@dataclass
class Chosen:
    plan: Plan
    record: Record
    runs: Runs
    """The engines that were chosen, built."""


SMALL_SHARE = 0.01
"""Compilers and other packages' engines, which take seconds, are not tried for a smaller share of the call."""
LEAST_PART = 1 / 6
"""Of ``MEASURE_SECONDS``, for a module that takes less than that of the model's call."""


def choose(
    plan: Plan,
    whole: Plan | None,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: How,
) -> Chosen:
    """Builds the engines, checks their results and measures them.

    Args:
        plan: the module cut at its LSTMs.
        whole: the module with its LSTMs as one region, for engines that have an LSTM of their own.
        how: a named engine runs every region that it can; a compiler that would take longer than the deadline is left
            out.

    Raises:
        CannotCaptureError: the plan's results differ from those of the module.
        RuntimeError: the named engine runs no region.
    """
    call = ModuleCall(module, args, kwargs, flatten(args, kwargs)[1])
    threads = torch.get_num_threads()
    with torch.no_grad():
        deadline = how.deadline if how.encoder == "auto" else math.inf
        options = Options(threads, how.precision, alone=plan.alone, deadline=deadline)
        parts = Split(plan, options, _record_inputs(plan, call))
        if how.encoder != "auto":
            insisted = replace(how, deadline=math.inf)
            _build(parts.trials, dict.fromkeys(("eager", how.encoder)), parts.options, insisted)
            return _insist(parts, how.encoder)
        quick = [name for name, engine in ENGINES.items() if not engine.setup_seconds]
        _build(parts.trials, quick, parts.options, how)
        problem = None
        splits = [parts]
        if whole is not None:
            try:
                splits.append(Split(whole, replace(options, alone=True), _record_inputs(whole, call)))
            except Exception as error:  # of PyTorch's LSTM, or of its results; the reason, for explain
                problem = Candidate("PyTorch's LSTM", reason=first_line(error))
        for split in splits[1:]:
            for trial in split.trials:  # its inputs are the module's
                trial.region = replace(trial.region, conditions=split.plan.conditions)
            own_lstm = [name for name, engine in ENGINES.items() if engine.own_lstm]
            _build(split.trials, own_lstm, split.options, how)
        # compilers last: they take most of the time, and seldom win
        _build(parts.trials, ENGINES.keys() - quick, parts.options, how)
        how.progress("measuring")
        seconds = MEASURE_SECONDS * max(how.share, LEAST_PART)
        split, engines, record = _measure(splits, call, seconds)
        runs = split.runs(engines)
        if record.gains and record.fast is not None and time.monotonic() < how.deadline:
            record.other = measure_elsewhere(split, engines, call, record.fast, seconds)
        if record.other is not None:
            runs |= split.runs(dict(enumerate(record.other.engines)))
        if problem is not None:
            record.whole, record.parts = [problem], record.fast
        return Chosen(split.plan, record, runs)


def _record_inputs(plan: Plan, call: ModuleCall) -> list[Trial]:
    """Runs the plan operator by operator, and keeps what each region is given."""
    weights = plan.tensors_of(call.module)
    regions = [build_region(str(k), graph, weights) for k, graph in enumerate(plan.regions)]
    given: dict[int, tuple[Tensor, ...]] = {}
    taken: dict[int, float] = {}

    def recorder(k: int) -> Run:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given[k] = inputs
            begun = time.perf_counter()
            found: tuple[Tensor, ...] = regions[k].module(*inputs)
            taken[k] = time.perf_counter() - begun
            return found

        return run

    recorders = {k: recorder(k) for k in range(len(regions))}
    begun = time.perf_counter()
    found = top_function(plan, call.module, weights, recorders)(*call.tensors)
    total = time.perf_counter() - begun
    expected = tensors_of(original_forward(call.module, call.args, call.kwargs))
    if not same_results(found, expected, None, call.module, call.args, call.kwargs):
        raise CannotCaptureError("its graph has other results than the module")
    return [
        Trial(
            with_ranks(region, [t.shape for t in given[k]]),
            given[k],
            RegionRecord(
                "eager",
                [list(t.shape) for t in given[k]],
                list(region.modules),
                sum(node.op == "call_function" for node in region.module.graph.nodes),
            ),
            taken[k] / total,
        )
        for k, region in enumerate(regions)
    ]


def _build(
    trials: Iterable[Trial],
    names: Iterable[str],
    options: Options,
    how: How,
) -> None:
    """Builds those engines for each region, and checks what they compute. The deadline is infinite for an engine that
    the user has named."""
    for trial in trials:
        for name in names:
            engine = ENGINES[name]
            found = Candidate(name)
            trial.record.candidates.append(found)
            found.reason = (
                engine.missing()
                or engine.supports(trial.region, options)
                or _not_worth_it(engine, trial, how.deadline)
            )
            if found.reason is not None:
                continue
            how.progress(f"building {engine.title}")
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


def _not_worth_it(engine: Engine, trial: Trial, deadline: float) -> str | None:
    """None, or why an engine is not tried."""
    if deadline == math.inf or not (engine.modules or engine.setup_seconds):
        return None
    if trial.share < SMALL_SHARE:
        return f"not tried: this region takes {trial.share:.1%} of the call"
    setup = engine.setup_seconds * trial.record.operators
    if time.monotonic() + (setup and setup + MEASURE_SECONDS * 2) > deadline:
        return "not tried: it would take longer than what was left of `budget`"
    return None


def _insist(split: Split, encoder: str) -> Chosen:
    if not any(encoder in trial.runs for trial in split.trials):
        raise RuntimeError(
            f"encoder: {encoder!r} runs no part of this model: {split.trials[0].candidate(encoder).reason}; use 'auto'."
        )
    engines = {k: encoder if encoder in t.runs else "eager" for k, t in enumerate(split.trials)}
    return Chosen(split.plan, _record(split, engines), split.runs(engines))


def _record(split: Split, engines: Mapping[int, str]) -> Record:
    for k, name in engines.items():
        split.trials[k].record.engine = name
    records = [trial.record for trial in split.trials]
    return Record(records, split.options.precision, threads=split.options.threads)


def _measure(
    splits: Sequence[Split], call: ModuleCall, seconds: float
) -> tuple[Split, dict[int, str], Record]:
    """Every engine for all regions at once, then the best of each region together, against the module's own forward."""
    uniform = [
        (split, engines, split.assignment(engines, name, call))
        for split in splits
        for name, engines in split.uniform()
    ]
    medians = Turns([assignment for *_, assignment in uniform]).medians(seconds)
    finalists: list[tuple[Split, dict[int, str]]] = []
    for split in splits:
        own = [
            (median, engines)
            for median, (of, engines, _) in zip(medians, uniform, strict=True)
            if of is split
        ]
        if own:
            best = min(own, key=operator.itemgetter(0))[1]
            mixed = split.fastest()
            finalists += [(split, engines) for engines in ([best] if best == mixed else [best, mixed])]
    usual = Assignment(lambda: original_forward(call.module, call.args, call.kwargs))
    last = [split.assignment(engines, "last", call) for split, engines in finalists]
    usual_s, *taken = Turns([usual, *last]).medians(seconds / 2)
    winner = min(range(len(finalists)), key=taken.__getitem__)
    split, engines = finalists[winner]
    record = _record(split, engines)
    record.eager, record.fast = usual_s, taken[winner]
    if len(splits) > 1:
        record.whole = splits[1].trials[0].record.candidates
        record.parts = min(s for s, (of, _) in zip(taken, finalists, strict=True) if of is splits[0])
    return split, engines, record
