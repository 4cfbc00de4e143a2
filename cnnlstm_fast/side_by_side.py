"""Times of a model as it was and of the optimized one, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .encoder.idle_team import end_idle_team
from .timing import interleave


def side_by_side(
    eager: Callable[[], Any],
    fast: Callable[[], Any],
    seconds: float,
    device: torch.device,
    min_rounds: int = 5,
) -> dict[str, list[float]]:
    """Seconds of ``eager`` and ``fast``, in interleaved rounds, see ``timing.interleave``.

    An untimed call comes before each timed one, and before those of ``eager`` the idle team ends. It would slow
    PyTorch's operators down, several times over where they are small, and with them the comparison.
    """
    jobs = {"eager": eager, "fast": fast}

    def before(name: str) -> None:
        if name == "eager":
            end_idle_team()
        jobs[name]()

    return interleave(jobs, seconds, min_rounds, device=device, before=before, warm_up=False)
