"""Paired measurement: the candidates take turns within every round, so a machine that drifts favours none."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Times each candidate once a round, after one warm-up round, until ``seconds`` are over.

    Returns:
        Per candidate the seconds of each round, in the order of the rounds, so that the same index is a pair.
    """
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    wait()
    order = list(candidates.items())
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + seconds
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() > end:
            break
        shuffle(order)  # who runs after whom must not matter
        for name, call in order:
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of slow/fast: how many times as fast the second one is."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
