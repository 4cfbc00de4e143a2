"""A clock for tests of what is done with times."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Clock:
    """Stands in the place of ``time``: it advances by what calls are said to take, alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def take(self, milliseconds: float) -> None:
        self.now += 1e-3 * milliseconds


clock = Clock()


class Net(nn.Module):
    """(B, 3, T) -> (B, 4, T), in 4 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        clock.take(4)
        return torch.relu(self.conv(x))
