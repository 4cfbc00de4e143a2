"""What ``explain`` says of the parts of a model around its LSTMs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from .deferred import Deferred
from .dynamo import compiled
from .engines import ENGINES
from .prepare import outcomes
from .record import Candidate, Record, RegionRecord, ms
from .runner import TRAINER, Runner
from .training import TRAINING_HINT, trainings
from .usual import RUNNER

HINT = (
    "around the LSTMs: as PyTorch runs it; optimize(model, example_inputs) measures whether an engine runs the "
    "convolutions, linear layers and the like faster, and uses it"
)
DEFERRED = "will be captured at the first call (in eval mode, without gradient and hooks)"


def engine_of(model: nn.Module, name: str) -> str | None:
    """The title of the engine that runs the LSTM of that name as a part of a module; None if none does."""
    for owner, module in model.named_modules():
        runner = module.__dict__.get(RUNNER)
        inside = not owner or name == owner or name.startswith(f"{owner}.")
        if inside and isinstance(runner, Runner) and runner.record.whole and not runner.plan.lstms:
            return ENGINES[runner.record.regions[0].engine].title
    return None


def describe(model: nn.Module) -> Iterator[str]:
    """For each module that was captured: its regions, the engine of each, the times of all that were tried, or why not;
    for each other one that was tried: why it was not captured."""
    named = [(name or "(the model itself)", m) for name, m in model.named_modules()]
    named += [("a graph of torch.compile", m) for m in compiled(model)]
    tried = [(where, m) for where, m in named if m in outcomes or RUNNER in m.__dict__]
    if not tried:
        yield HINT
    for where, module in tried:
        runner = module.__dict__.get(RUNNER)
        outcome = outcomes.get(module)
        if isinstance(runner, Deferred):
            yield f"{where}: {DEFERRED}"
            continue
        if runner is not None:
            yield f"{where}: captured; {_times(runner.record)}"
            yield from _regions(runner.record)
            yield from _loop(runner.record)
            yield from _inside(runner.record)
            yield from (f"  note:     {note}" for note in runner.notes)
        elif outcome is not None and outcome.record is not None:
            yield f"{where}: captured, but no engine is faster; {_times(outcome.record)}"
            yield from _regions(outcome.record)
            yield from _inside(outcome.record)
        elif outcome is not None:
            yield f"{where}: not captured: {outcome.reason}"
        if outcome is not None:
            yield from (f"  note:     {note}" for note in outcome.notes)
    yield from _training(model)


def _training(model: nn.Module) -> Iterator[str]:
    trainer = model.__dict__.get(TRAINER)
    record = trainings.get(model) if trainer is None else trainer.record
    if record is None:
        yield TRAINING_HINT
    elif isinstance(record, str):
        yield f"training: as PyTorch runs it: {record}"
    else:
        yield f"training: a step{_source(record.threads, record.cached)}"
        for candidate in record.candidates:
            mark = "*" if candidate.engine == record.engine else " "
            yield f"  {mark} {candidate.engine + ':':<22} {candidate.reason or ms(candidate.seconds or 0.0)}"


def _times(record: Record) -> str:
    if record.eager is None:
        return "named by the caller, not measured"
    then = f"{ms(record.fast)} by these engines" if record.fast is not None else "measured inside the model"
    return f"{ms(record.eager)} before, {then},{_source(record.threads, record.cached)}"


def _source(threads: int, cached: bool) -> str:
    """How times were measured."""
    source = ", measured by an earlier process" if cached else ""
    return f" with {threads} thread{'s' if threads != 1 else ''}{source}"


def _loop(record: Record) -> Iterator[str]:
    loop = record.loop
    if loop is not None and loop.looped is not None and loop.folded is not None:
        yield (
            f"  frames:   {loop.calls} calls run as one, at most {loop.rows} rows at once: the model's call takes "
            f"{ms(loop.folded)} instead of {ms(loop.looped)}"
        )


def _regions(record: Record) -> Iterator[str]:
    if record.whole and record.parts is not None:
        found = ", ".join(f"{c.engine} {_found(c)}" for c in record.whole if c.reason is None)
        yield f"  as one, LSTMs included: {found or 'no engine runs it'}; by parts with fast LSTMs: {ms(record.parts)}"
        yield from (f"    {c.engine}: {c.reason}" for c in record.whole if c.reason is not None)
    for k, region in enumerate(record.regions):
        yield f"  region {k}: {_covered(region)}"
        for candidate in region.candidates:
            mark = "*" if candidate.engine == region.engine else " "
            yield f"  {mark} {candidate.engine + ':':<12} {_found(candidate)}"
    if (other := record.other) is not None:
        yield (
            f"  calls with sizes nearer to {_sizes(other.sizes)} run by {', '.join(other.engines)}: "
            f"{ms(other.seconds)} there, {ms(other.instead)} by the engines above"
        )


def _inside(record: Record) -> Iterator[str]:
    if record.inside is not None:
        yield (
            f"  inside the model, whose call takes {ms(record.inside.own)} with {', '.join(record.inside.engines)}, "
            f"{ms(record.inside.pytorch)} with engines that work by PyTorch's threads"
        )


def _covered(region: RegionRecord) -> str:
    modules = ", ".join(region.modules[:6]) + (", ..." if len(region.modules) > 6 else "")
    return f"{modules or 'the code of forward'}; {region.operators} operators on {_sizes(region.sizes)}"


def _sizes(sizes: Iterable[Iterable[int]]) -> str:
    return ", ".join(f"({', '.join(map(str, size))})" for size in sizes)


def _found(candidate: Candidate) -> str:
    if candidate.reason is not None:
        return candidate.reason
    setup = (
        f", {candidate.setup:.1f} s to set up"
        if candidate.setup is not None and candidate.setup >= 0.05
        else ""
    )
    time = "not measured" if candidate.seconds is None else ms(candidate.seconds)
    return f"{time}{setup} ({ENGINES[candidate.engine].title})"
