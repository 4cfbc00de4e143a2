"""Times of a model's call with several assignments of engines, in turns."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..timing import interleave
from ..timing import timed as timer
from .engines import ENGINES, Run
from .idle_team import end_idle_team

MEASURE_SECONDS = 3.0
"""For all rounds of a comparison together; at least ``MIN_ROUNDS`` rounds."""
MIN_ROUNDS = 3
WARM_UP_SECONDS = 5e-3
"""Before each timed call: PyTorch's threads spin for 4 ms after the last parallel region of another candidate."""
LONG_CALL = 0.1
"""Seconds of a call on which cold caches and spinning threads have no visible effect."""


class Timed:
    """A region's engine that can keep the time of each call."""

    def __init__(self, run: Run, times: list[float]) -> None:
        self._run, self._times = run, times
        self.keeps = True

    def forget(self) -> None:
        self._times.clear()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        start = time.perf_counter()
        found = self._run(*inputs)
        if self.keeps:
            self._times.append(time.perf_counter() - start)
        return found


@dataclass(frozen=True)
class Assignment:
    """A call of the model with these engines for its regions, by number."""

    call: Callable[[], Any]
    engines: Mapping[int, str] = field(default_factory=dict)
    timed: tuple[Timed, ...] = ()


class Turns:
    """Times assignments in turns. A turn begins without the idle team, unless the assignment's engines make it, and
    with calls that are not timed: the other candidates have left their weights in the caches and their threads
    awake."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = {str(k): assignment for k, assignment in enumerate(assignments)}
        self._took: dict[str, float] = {}

    def medians(self, seconds: float) -> list[float]:
        """Of each assignment's times, as they would be at the machine's usual speed: it may change from one round to
        the next, for all assignments alike."""
        calls = {label: assignment.call for label, assignment in self._assignments.items()}
        self._took = {label: timer(call) for label, call in calls.items()}
        spent = sum(self._took.values())
        counts = min(self._took.values()) >= LONG_CALL  # the first calls, then, are as good as any
        if not counts:
            for assignment in self._assignments.values():
                for timed in assignment.timed:
                    timed.forget()
        rounds = (MIN_ROUNDS if MIN_ROUNDS * spent < seconds else 1) - counts
        left = seconds - counts * spent
        times = interleave(calls, left, min_rounds=rounds, before=self._warm_up, warm_up=False)
        if counts:
            times = {label: [self._took[label], *taken] for label, taken in times.items()}
        speeds = [statistics.geometric_mean(taken) for taken in zip(*times.values(), strict=True)]
        usual = statistics.median(speeds)
        return [usual * statistics.median(map(operator.truediv, taken, speeds)) for taken in times.values()]

    def _warm_up(self, label: str) -> None:
        assignment = self._assignments[label]
        if not any(ENGINES[name].own_threads for name in assignment.engines.values()):
            end_idle_team()
        for timed in assignment.timed:
            timed.keeps = False
        if self._took[label] < LONG_CALL:
            end = time.perf_counter() + WARM_UP_SECONDS
            assignment.call()
            while time.perf_counter() < end:
                assignment.call()
        for timed in assignment.timed:
            timed.keeps = True
