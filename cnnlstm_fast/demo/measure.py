"""Times of the original model and of the optimized one, measured in interleaved rounds."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.utils.rnn import PackedSequence

from ..side_by_side import side_by_side
from ..timing import Ratio, paired_ratio
from .data import Strings
from .model import NumberReader
from .train import training_step

NOISY = (
    "Some times scatter widely (~): other work was running on this machine. Repeat the demo when it is idle."
)


@dataclass(frozen=True)
class Timing:
    """Seconds of each round for one job; the same index in ``eager`` and ``fast`` is the same round."""

    what: str
    eager: list[float]
    fast: list[float]
    part: bool = False  # of the job before it

    @property
    def eager_ms(self) -> float:
        return statistics.median(self.eager) * 1e3

    @property
    def fast_ms(self) -> float:
        return statistics.median(self.fast) * 1e3

    @cached_property
    def speedup(self) -> Ratio:
        """How many times as fast the optimized model is: eager / fast over the rounds."""
        return paired_ratio(self.eager, self.fast)

    @property
    def verdict(self) -> str:
        """Says "faster" or "slower", or "no difference" where the interval contains 1."""
        return "faster" if self.speedup.low > 1.0 else "slower" if self.speedup.loss else "no difference"

    @property
    def noisy(self) -> bool:
        """Whether the rounds scatter so much that ``speedup`` says little: the machine had other work."""
        return self.speedup.high > 1.5 * self.speedup.low


def measure(eager: NumberReader, fast: NumberReader, held_out: Strings, seconds: float = 4.0) -> list[Timing]:
    """Times reading one string and 32, the LSTM's part in it, and a training step on 32.

    Args:
        seconds: how long to time each of them.
    """
    device = next(eager.parameters()).device
    one, many = held_out.part(0, 1), held_out.part(0, min(32, len(held_out)))

    def reading(model: NumberReader, strings: Strings) -> Callable[[], object]:
        pictures = strings.pictures.to(device)

        @torch.no_grad()
        def job() -> object:
            return model(pictures, strings.widths)

        return job

    def lstm_alone(model: NumberReader, strings: Strings) -> Callable[[], object]:
        seen: list[PackedSequence] = []
        hook = model.lstm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        reading(model, strings)()
        hook.remove()
        return torch.no_grad()(lambda: model.lstm(seen[0]))

    def training(model: NumberReader) -> Callable[[], object]:
        pupil = copy.deepcopy(model).train()  # the model itself keeps its weights
        optimizer = torch.optim.AdamW(pupil.parameters(), lr=1e-4)
        return lambda: training_step(pupil, optimizer, many)

    eager.eval()
    fast.eval()
    jobs = {
        "read 1 string": (reading(eager, one), reading(fast, one)),
        "of that, the LSTM": (lstm_alone(eager, one), lstm_alone(fast, one)),
        f"read {len(many)} strings": (reading(eager, many), reading(fast, many)),
        f"of these {len(many)}, the LSTM": (lstm_alone(eager, many), lstm_alone(fast, many)),
        f"train on {len(many)} strings": (training(eager), training(fast)),
    }
    timings = []
    for what, (slow, quick) in jobs.items():
        times = side_by_side(slow, quick, seconds, device, min_rounds=11)
        timings.append(Timing(what, times["eager"], times["fast"], part=what.startswith("of ")))
    return timings
