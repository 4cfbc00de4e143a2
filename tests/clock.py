"""A clock for tests of what is done with times."""

from __future__ import annotations


class Clock:
    """Stands in the place of ``time``: it advances by what calls are said to take, alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def take(self, milliseconds: float) -> None:
        self.now += 1e-3 * milliseconds
