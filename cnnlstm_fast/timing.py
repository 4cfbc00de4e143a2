"""The timer of ``verify``, the demo and the benchmarks: one clock, interleaved rounds, ratios of paired times.

In every round each candidate is timed once, in random order, so that a drift of the machine's speed affects all of them
alike. A ratio is taken within each round, between times that were measured shortly after each other.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

RESAMPLES = 2000
"""Of a bootstrap."""


def synchronizer(device: torch.device | str) -> Callable[[], None]:
    """A function that returns when the device has finished all work: a CUDA call returns before its kernels end."""
    if torch.device(device).type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return lambda: None


def timed(call: Callable[[], Any], synchronize: Callable[[], None] = lambda: None) -> float:
    """Seconds of one call, with the work that it leaves to the device."""
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def orders(names: Iterable[str]) -> Iterator[list[str]]:
    """An order of the candidates for each round, without end; the same in every run."""
    order, shuffle = list(names), random.Random(0).shuffle
    while True:
        shuffle(order)  # a candidate must not always run after the same other one
        yield list(order)


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    device: torch.device | str = "cpu",
    before: Callable[[str], Any] = lambda name: None,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Times each candidate once a round, until ``seconds`` are over.

    Args:
        before: is called with the candidate's name before each of its calls, and is not timed.
        warm_up: whether a round that does not count comes first.

    Returns:
        Per candidate the seconds of each round, in the order of the rounds, so that the same index is a pair.
    """
    synchronize = synchronizer(device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name, call in candidates.items() if warm_up else ():
        before(name)
        timed(call, synchronize)
    end = time.perf_counter() + seconds
    for done, order in zip(range(max_rounds), orders(candidates), strict=False):
        if done >= min_rounds and time.perf_counter() > end:
            break
        for name in order:
            before(name)
            times[name].append(timed(candidates[name], synchronize))
    return times


@dataclass(frozen=True)
class Ratio:
    """Another's time / ours, above 1 ours is faster: the median over the paired rounds, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def loss(self) -> bool:
        """Slower beyond the scatter between rounds."""
        return self.high < 1.0


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the paired rounds of slow / fast: how many times as fast the second one is."""
    return float(_ratios(slow, fast).quantile(0.5))


def paired_ratio(other: Sequence[float], ours: Sequence[float]) -> Ratio:
    """``median_ratio`` of other / ours with its 95 % interval: percentiles of a bootstrap over the rounds, with a
    fixed seed."""
    ratios = _ratios(other, ours)
    draws = torch.randint(
        len(ratios), (RESAMPLES, len(ratios)), generator=torch.Generator().manual_seed(0), device="cpu"
    )
    medians = ratios[draws].quantile(0.5, dim=1)
    low, high = (float(medians.quantile(q)) for q in (0.025, 0.975))
    return Ratio(median_ratio(other, ours), low, high)


def _ratios(other: Sequence[float], ours: Sequence[float]) -> Tensor:
    """Of the rounds that both have: a candidate that ended early has fewer."""
    n = min(len(other), len(ours))
    a, b = (torch.tensor(times[:n], dtype=torch.float64, device="cpu") for times in (other, ours))
    return a / b
