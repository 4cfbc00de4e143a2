"""Split: a plan with the engines that can run each of its regions, and their times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .engines import ENGINES, Options, Run
from .plan import Plan
from .record import Candidate, RegionRecord
from .region import Region
from .runner import Runs, top_function
from .turns import Assignment, Timed

BETTER = 0.97
"""An engine is preferred to one before it in the table if its time is at most this share of that one's."""


@dataclass(frozen=True)
class ModuleCall:
    """A call to measure, and the tensors among its arguments."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: tuple[Tensor, ...]


@dataclass
class Trial:
    """A region with the engines that can run it."""

    region: Region
    inputs: tuple[Tensor, ...]
    record: RegionRecord
    share: float = 1.0
    """Of the whole call's time, in PyTorch."""
    runs: dict[str, Run] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    """Seconds within the model, by the assignment that was measured."""

    def candidate(self, engine: str) -> Candidate:
        return next(c for c in self.record.candidates if c.engine == engine)

    def fastest(self) -> str:
        """The region's fastest engine of those for all regions, an earlier one of the table where they are close."""
        best: Candidate | None = None
        for candidate in self.record.candidates:
            if candidate.engine not in self.runs:
                continue
            candidate.seconds = statistics.median(self.times[candidate.engine])
            if best is None or best.seconds is None or candidate.seconds < BETTER * best.seconds:
                best = candidate
        assert best is not None
        return best.engine


@dataclass(frozen=True)
class Split:
    plan: Plan
    options: Options
    trials: list[Trial]

    def uniform(self) -> Iterator[tuple[str, dict[int, str]]]:
        """Each engine for all regions; where it does not run one, one that does."""

        def first_of(trial: Trial, name: str) -> str:
            return name if name in trial.runs else next(n for n in ("onednn", "eager") if n in trial.runs)

        for name in ENGINES:
            if any(name in trial.runs for trial in self.trials):
                yield name, {k: first_of(trial, name) for k, trial in enumerate(self.trials)}

    def fastest(self) -> dict[int, str]:
        return {k: trial.fastest() for k, trial in enumerate(self.trials)}

    def runs(self, engines: Mapping[int, str]) -> Runs:
        return {(k, name): self.trials[k].runs[name] for k, name in engines.items()}

    def assignment(
        self,
        engines: Mapping[int, str],
        label: str,
        call: ModuleCall,
    ) -> Assignment:
        """The times of its regions are kept under the label."""
        runs = {
            k: Timed(self.trials[k].runs[name], self.trials[k].times.setdefault(label, []))
            for k, name in engines.items()
        }
        weights = self.plan.tensors_of(call.module)
        forward = top_function(self.plan, call.module, weights, runs, self.options.precision)
        return Assignment(lambda: forward(*call.tensors), engines, tuple(runs.values()))
